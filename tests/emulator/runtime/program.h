// Decoded PTX: instructions with a handler and resolved operands, ready to run on whole warps.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "runtime/lanes.h"
#include "runtime/ptx.h"

namespace emulator {

struct Execution;
struct Instruction;
using Handler = void (*)(Execution&, const Instruction&);

// Where the 32 lanes of an operand lie.
enum class Bank : uint8_t {
  kFrame,     // registers of the running function
  kConstant,  // immediates and addresses, of the function
  kSpecial,   // %tid and the like, of the warp
};
struct Slot {
  uint32_t offset = 0;  // bytes
  Bank bank = Bank::kFrame;
};

struct Function;

// How often an instruction ran; kept where Options::profile is set.
struct Profile {
  Handler run = nullptr;
  int32_t guard = -1;
  uint64_t runs = 0;  // for one lane of a warp or more
  uint64_t held = 0;  // times when the guard held a lane back
};

struct Instruction {
  Handler run = nullptr;
  int32_t guard = -1;  // offset of a predicate in the frame
  uint32_t guard_register = 0;
  bool is_guard_negated = false;
  bool is_c_negated = false;
  bool copies = false;             // of registers that may be undefined
  uint8_t count = 1;               // elements of a vector
  int32_t target = -1;             // of a branch
  int32_t option = 0;              // what the handler's family makes of it
  bool is_address_narrow = false;  // 32-bit lanes in a
  int64_t offset = 0;              // added to an address
  bool is_second_narrow = false;   // the second address of copies: in b
  int64_t second_offset = 0;
  Slot d, p, a, b, c;  // result, second result, sources
  bool has_d = false;
  bool has_p = false;
  std::vector<Slot> results;  // of vectors, matrices and calls
  std::vector<Slot> sources;
  std::vector<int32_t> targets;         // of brx.idx
  std::vector<uint32_t> reads, writes;  // registers, for the check of undefined ones
  const Function* callee = nullptr;     // of call
  std::string text;                     // reason why this cannot run
  const ptx::Statement* statement = nullptr;
  Profile* profile = nullptr;
};

struct Parameter {
  size_t offset;
  size_t bytes;
};

// An object in shared memory; accesses must stay inside one.
struct SharedObject {
  uint32_t offset;
  uint32_t bytes;
};

struct Function {
  std::string name;
  const ptx::Module* module = nullptr;
  std::vector<ptx::Statement> statements;  // after mutation
  std::vector<Instruction> code;
  std::vector<Profile> profiles;  // of the code, or none
  std::vector<char> constants;
  std::vector<Parameter> params;
  size_t param_bytes = 0;
  size_t result_offset = 0;  // of the function's result in its own frame, if it has one
  size_t result_bytes = 0;
  size_t frame_bytes = 0;
  size_t scratch_bytes = 0;  // per lane: parameters of calls, results
  size_t local_bytes = 0;    // per lane
  uint32_t local_base = 0;   // frame offset of the hidden register with the lane's local address
  uint32_t register_count = 0;
  std::vector<SharedObject> shared;
  uint32_t static_shared_bytes = 0;  // as the program declares it
  uint32_t dynamic_offset = 0;       // where dynamic shared memory begins
  int max_threads = 1024;
};

}  // namespace emulator
