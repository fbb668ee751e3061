// PTX as text: what the parser makes of it, before anything is given a meaning.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace emulator::ptx {

// .u32, .s16, .b64, .f32, .f16, .bf16, .f16x2, .bf16x2, .pred ...
struct Type {
  enum class Kind : uint8_t { kNone, kUnsigned, kSigned, kBits, kFloat, kBFloat, kPredicate };
  Kind kind = Kind::kNone;
  int bits = 0;
  bool is_packed = false;  // two 16-bit values in 32 bits

  bool is_float() const { return kind == Kind::kFloat || kind == Kind::kBFloat; }
  int bytes() const { return bits / 8; }
};

// The type a modifier names; kNone for a modifier that is no type.
Type parse_type(std::string_view modifier);

struct Operand {
  enum class Kind {
    kSink,       // "_"
    kRegister,   // id
    kImmediate,  // value
    kSymbol,     // name: variable, label, function or special register
    kAddress,    // [elements[0] + value]
    kVector,     // {elements} or (elements)
    kPair,       // elements[0] | elements[1]: two results
  };
  Kind kind = Kind::kSink;
  int id = -1;
  int64_t value = 0;
  bool is_negated = false;  // "!"
  std::string name;
  std::vector<Operand> elements;
};

// Where a statement comes from, by .loc directives.
struct Location {
  int file = 0;
  int line = 0;
  int inlined_file = 0;
  int inlined_line = 0;
};

struct Statement {
  std::string opcode;              // "ld.global.v4.f32"
  std::vector<std::string> parts;  // "ld", "global", "v4", "f32"
  int guard = -1;                  // predicate register
  bool is_guard_negated = false;
  std::vector<Operand> operands;
  int scope = 0;     // of the labels it names
  int ptx_line = 0;  // in the module's text
  Location location;

  bool has(std::string_view modifier) const;
};

struct Register {
  std::string name;
  Type type;
};

// .param, .shared, .local, .global, .const
struct Variable {
  std::string name;
  size_t bytes = 0;
  size_t alignment = 1;
  Type type;
  std::vector<int64_t> values;  // initial contents
  bool is_constant = false;
  int scope = 0;  // for parameters of calls inside a function
};

struct Label {
  std::string name;
  int scope;
  int statement;  // index of the one that follows
};

struct Function {
  std::string name;
  bool is_kernel = false;
  std::vector<Variable> params;
  std::vector<Variable> results;
  std::vector<Register> registers;
  std::vector<Variable> shared;
  std::vector<Variable> local;
  std::vector<Variable> call_params;
  std::vector<Statement> statements;
  std::vector<Label> labels;
  std::map<std::string, std::vector<std::string>> branch_tables;  // of brx.idx
  std::vector<int> scopes{-1};  // parent of each scope; 0 is the body
  int max_threads = 1024;
};

struct Module {
  std::deque<Function> functions;  // in the order of the text
  std::vector<Variable> globals;
  std::vector<Variable> shared;  // of the whole module
  std::string dynamic_shared;    // one name of the dynamic shared memory; all are one
  std::vector<std::string> dynamic_names;
  size_t dynamic_alignment = 1;
  std::map<int, std::string> files;

  const Function* find(std::string_view name) const;
  std::string describe(const Statement& statement) const;  // "file.cu:12, ptx line 40 add.f32"
};

// Throws Fault for text it cannot read.
std::unique_ptr<Module> parse(std::string_view text);

}  // namespace emulator::ptx
