// Turns parsed PTX functions into instructions with handlers.
//
// Every family of instructions (decode_*.cpp, next to its handlers) fills an Instruction from a
// Statement through the Decoder: it resolves operands to slots and notes which registers are read
// and written.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <string_view>

#include "runtime/program.h"

namespace emulator {

struct Unsupported {
  std::string reason;
};

// What functions of a module refer to.
struct Surroundings {
  const ptx::Module* module;
  std::map<std::string, char*> globals;                       // .global and .const variables
  std::function<const Function*(const std::string&)> callee;  // null: unknown
};

class Decoder {
 public:
  Decoder(const Surroundings& surroundings, const ptx::Function& source, Function* result);
  void run();

  // ---- for the families
  const ptx::Function& source_function() const { return source_; }
  // A value of so many bits (1 for predicates): register, immediate, special register, address.
  Slot source(const ptx::Operand& operand, int bits);
  // Like source, for statements that allow registers wider than the type.
  Slot source_as_is(const ptx::Operand& operand, int bits, bool* is_wide);
  Slot predicate(const ptx::Operand& operand);
  Slot result(const ptx::Operand& operand, int bits);
  Slot result_as_is(const ptx::Operand& operand, bool* is_wide);
  // d and, for "d|p", also p.
  void results(const ptx::Operand& operand, int bits);
  void vector_sources(const ptx::Operand& operand, int bits, size_t count);
  void vector_results(const ptx::Operand& operand, int bits, size_t count);
  // The address operand becomes i.a (is_address_narrow: 32-bit lanes) + i.offset.
  void address(const ptx::Operand& operand);
  // The same for copies' other address: i.b, i.second_offset.
  void second_address(const ptx::Operand& operand);
  // Byte offset of a .param variable, and where it lies.
  enum class ParamSpace { kLaunch, kCall, kOwn, kResult };
  size_t param(const std::string& name, int scope, ParamSpace* space) const;
  int64_t immediate(const ptx::Operand& operand) const;
  const Function* callee(const std::string& name) const { return surroundings_.callee(name); }
  int label(const std::string& name, int scope) const;
  Slot constant(uint64_t value, int bits);

 private:
  void place_registers();
  void place_params();
  void place_shared();
  void place_locals();
  void decode(const ptx::Statement& statement, Instruction* instruction);
  Slot symbol(const std::string& name, int bits);
  bool find_address(const std::string& name, uint64_t* address) const;

  const Surroundings& surroundings_;
  const ptx::Function& source_;
  Function* result_;
  Instruction* instruction_ = nullptr;
  std::vector<uint32_t> register_offsets_;
  std::map<std::string, uint64_t> shared_addresses_;
  std::map<std::string, size_t> local_offsets_;
  std::map<std::string, size_t> param_offsets_;
  std::map<std::pair<std::string, int>, size_t> call_param_offsets_;
  std::map<std::pair<uint64_t, int>, uint32_t> constant_offsets_;
  std::map<std::pair<std::string, int>, int> labels_;
};

// A family: returns false when the opcode is not its own, throws Unsupported when it is but this
// form of it is not emulated.
using Family = bool (*)(Decoder& decoder, const ptx::Statement& statement, Instruction* i);
bool decode_integer(Decoder&, const ptx::Statement&, Instruction*);
bool decode_bits(Decoder&, const ptx::Statement&, Instruction*);
bool decode_float(Decoder&, const ptx::Statement&, Instruction*);
bool decode_half(Decoder&, const ptx::Statement&, Instruction*);
bool decode_select(Decoder&, const ptx::Statement&, Instruction*);
bool decode_convert(Decoder&, const ptx::Statement&, Instruction*);
bool decode_memory(Decoder&, const ptx::Statement&, Instruction*);
bool decode_params(Decoder&, const ptx::Statement&, Instruction*);
bool decode_atomic(Decoder&, const ptx::Statement&, Instruction*);
bool decode_async(Decoder&, const ptx::Statement&, Instruction*);
bool decode_mbarrier(Decoder&, const ptx::Statement&, Instruction*);
bool decode_matrix(Decoder&, const ptx::Statement&, Instruction*);
bool decode_wgmma(Decoder&, const ptx::Statement&, Instruction*);
bool decode_warp(Decoder&, const ptx::Statement&, Instruction*);
bool decode_barrier(Decoder&, const ptx::Statement&, Instruction*);
bool decode_control(Decoder&, const ptx::Statement&, Instruction*);

// The first modifier that is a type, and the second; kNone if there is none.
ptx::Type first_type(const ptx::Statement& statement);
ptx::Type second_type(const ptx::Statement& statement);

// Fills an empty Function from a parsed one whose statements may have been mutated.
void decode_function(const Surroundings& surroundings, const ptx::Function& source,
                     std::vector<ptx::Statement> statements, Function* result);

}  // namespace emulator
