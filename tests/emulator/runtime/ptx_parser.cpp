// Reads PTX text into ptx::Module.
#include <charconv>
#include <unordered_map>

#include "runtime/fault.h"
#include "runtime/ptx.h"
#include "runtime/ptx_lexer.h"

namespace emulator::ptx {
namespace {

using Names = std::unordered_map<std::string, int>;

class Parser {
 public:
  explicit Parser(std::string_view text) : lexer_(text) {}

  std::unique_ptr<Module> run() {
    while (lexer_.peek().kind != Token::Kind::kEnd) module_item();
    return std::move(module_);
  }

 private:
  // ---- directives of the module
  void module_item();
  void file_directive();
  void function(bool is_kernel);
  std::vector<Variable> parameter_list();
  void function_attributes();

  // ---- variables
  Variable variable();
  void initial_values(Variable* variable);
  void global_variables(bool is_constant);
  void shared_variables(bool is_extern);

  // ---- bodies
  void body();
  void body_item();
  void body_directive(std::string_view name);
  void register_declaration();
  void location_directive();
  void statement();
  Operand operand();
  Operand bare_operand();
  Operand number(std::string_view text, bool is_negative);
  std::vector<Operand> list(std::string_view end);
  int find_register(const std::string& name) const;

  Lexer lexer_;
  std::unique_ptr<Module> module_ = std::make_unique<Module>();
  Function* function_ = nullptr;
  std::vector<Names> register_names_;  // innermost scope last
  std::vector<int> scope_;
  Location location_;
};

int to_int(std::string_view text) {
  int value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

void Parser::module_item() {
  bool is_extern = false;
  while (lexer_.peek().is(".visible") || lexer_.peek().is(".weak") || lexer_.peek().is(".extern") ||
         lexer_.peek().is(".common")) {
    is_extern |= lexer_.next().is(".extern");
  }
  const Token token = lexer_.next();
  if (token.is(".version") || token.is(".address_size")) {
    lexer_.next();
  } else if (token.is(".target")) {
    do lexer_.next();
    while (lexer_.accept(","));
  } else if (token.is(".file")) {
    file_directive();
  } else if (token.is(".entry") || token.is(".func")) {
    function(token.is(".entry"));
  } else if (token.is(".global") || token.is(".const")) {
    global_variables(token.is(".const"));
  } else if (token.is(".shared")) {
    shared_variables(is_extern);
  } else if (token.is(".section")) {
    lexer_.skip_past("}");
  } else if (token.is(".loc")) {
    location_directive();
  } else if (token.is(".alias") || token.is(".pragma")) {
    lexer_.skip_past(";");
  } else {
    throw Fault(FaultKind::kUnsupported, "unsupported PTX: line " + std::to_string(token.line) +
                                             ": " + std::string(token.text));
  }
}

void Parser::file_directive() {
  const int number = to_int(lexer_.next().text);
  std::string name(lexer_.next().text);
  module_->files[number] = name.substr(name.rfind('/') + 1);
  while (lexer_.accept(",")) lexer_.next();
}

// ---- variables ---------------------------------------------------------------------------------

// After the state space: alignment, type, name and extent.
Variable Parser::variable() {
  Variable result;
  size_t count = 1;
  for (;;) {
    const Token token = lexer_.next();
    if (token.is(".align")) {
      result.alignment = static_cast<size_t>(to_int(lexer_.next().text));
    } else if (token.text.starts_with(".v") && token.text.size() == 3) {
      count *= static_cast<size_t>(to_int(token.text.substr(2)));
    } else if (token.text.starts_with(".")) {
      const Type type = parse_type(token.text.substr(1));
      if (type.kind != Type::Kind::kNone) result.type = type;  // else .ptr, .global and the like
    } else {
      result.name = token.text;
      break;
    }
  }
  const auto element = static_cast<size_t>(result.type.bytes());
  if (result.alignment == 1) result.alignment = element;
  while (lexer_.accept("[")) {
    if (lexer_.accept("]")) {
      count = 0;  // extern: as large as the launch says
      continue;
    }
    count *= static_cast<size_t>(to_int(lexer_.next().text));
    lexer_.expect("]");
  }
  result.bytes = count * element;
  return result;
}

void Parser::initial_values(Variable* variable) {
  const bool is_list = lexer_.accept("{");
  do {
    const Operand value = bare_operand();
    if (value.kind != Operand::Kind::kImmediate) {
      throw Fault(FaultKind::kUnsupported, "unsupported PTX: initial value of " + variable->name);
    }
    variable->values.push_back(value.value);
  } while (is_list && lexer_.accept(","));
  if (is_list) lexer_.expect("}");
}

void Parser::global_variables(bool is_constant) {
  Variable global = variable();
  global.is_constant = is_constant;
  if (lexer_.accept("=")) initial_values(&global);
  lexer_.expect(";");
  module_->globals.push_back(std::move(global));
}

void Parser::shared_variables(bool is_extern) {
  Variable shared = variable();
  lexer_.expect(";");
  if (!is_extern) {
    module_->shared.push_back(std::move(shared));
    return;
  }
  module_->dynamic_alignment = std::max(module_->dynamic_alignment, shared.alignment);
  module_->dynamic_names.push_back(std::move(shared.name));
}

// ---- functions ---------------------------------------------------------------------------------

std::vector<Variable> Parser::parameter_list() {
  std::vector<Variable> result;
  if (!lexer_.accept("(")) return result;
  while (!lexer_.accept(")")) {
    lexer_.expect(".param");
    result.push_back(variable());
    lexer_.accept(",");
  }
  return result;
}

void Parser::function(bool is_kernel) {
  Function function;
  function.is_kernel = is_kernel;
  if (!is_kernel) function.results = parameter_list();
  function.name = lexer_.next().text;
  function.params = parameter_list();
  function_ = &function;
  function_attributes();
  if (lexer_.accept(";")) return;  // a declaration
  body();
  module_->functions.push_back(std::move(function));
}

void Parser::function_attributes() {
  while (!lexer_.peek().is("{") && !lexer_.peek().is(";")) {
    const Token token = lexer_.next();
    if (token.is(".maxntid") || token.is(".reqntid")) {
      function_->max_threads = to_int(lexer_.next().text);
      while (lexer_.accept(",")) function_->max_threads *= to_int(lexer_.next().text);
    } else if (token.is(".pragma")) {
      lexer_.skip_past(";");
    }
  }
}

void Parser::body() {
  lexer_.expect("{");
  register_names_.assign(1, {});
  scope_.assign(1, 0);
  while (!scope_.empty()) body_item();
}

void Parser::body_item() {
  if (lexer_.accept("{")) {
    function_->scopes.push_back(scope_.back());
    scope_.push_back(static_cast<int>(function_->scopes.size()) - 1);
    register_names_.emplace_back();
  } else if (lexer_.accept("}")) {
    scope_.pop_back();
    register_names_.pop_back();
  } else if (lexer_.accept(";")) {
    // an empty statement
  } else if (lexer_.peek().kind == Token::Kind::kWord && lexer_.peek().text[0] == '.') {
    const Token token = lexer_.next();
    body_directive(token.text);
  } else {
    statement();
  }
}

void Parser::body_directive(std::string_view name) {
  if (name == ".reg") {
    register_declaration();
  } else if (name == ".loc") {
    location_directive();
  } else if (name == ".shared" || name == ".local" || name == ".param") {
    Variable declared = variable();
    declared.scope = scope_.back();
    lexer_.expect(";");
    auto& list = name == ".shared"  ? function_->shared
                 : name == ".local" ? function_->local
                                    : function_->call_params;
    list.push_back(std::move(declared));
  } else if (name == ".branchtargets") {
    auto& targets = function_->branch_tables[function_->labels.back().name];
    do targets.emplace_back(lexer_.next().text);
    while (lexer_.accept(","));
    lexer_.expect(";");
  } else {
    lexer_.skip_past(";");  // .pragma
  }
}

void Parser::register_declaration() {
  const Type type = parse_type(lexer_.next().text.substr(1));
  auto declare = [&](std::string name) {
    register_names_.back()[name] = static_cast<int>(function_->registers.size());
    function_->registers.push_back({std::move(name), type});
  };
  do {
    const std::string name(lexer_.next().text);
    if (lexer_.accept("<")) {
      const int count = to_int(lexer_.next().text);
      for (int i = 0; i < count; ++i) declare(name + std::to_string(i));
      lexer_.expect(">");
    } else {
      declare(name);
    }
  } while (lexer_.accept(","));
  lexer_.expect(";");
}

// .loc file line column[, function_name label, inlined_at file line column]
void Parser::location_directive() {
  location_ = {};
  location_.file = to_int(lexer_.next().text);
  location_.line = to_int(lexer_.next().text);
  lexer_.next();
  while (lexer_.accept(",")) {
    const Token what = lexer_.next();
    if (what.is("function_name")) {
      lexer_.next();
      if (lexer_.accept("+")) lexer_.next();
    } else if (what.is("inlined_at")) {
      location_.inlined_file = to_int(lexer_.next().text);
      location_.inlined_line = to_int(lexer_.next().text);
      lexer_.next();
    }
  }
}

void split_opcode(Statement* statement) {
  std::string_view rest = statement->opcode;
  for (size_t dot; (dot = rest.find('.')) != rest.npos; rest.remove_prefix(dot + 1)) {
    statement->parts.emplace_back(rest.substr(0, dot));
  }
  statement->parts.emplace_back(rest);
}

void Parser::statement() {
  Statement statement;
  statement.ptx_line = lexer_.peek().line;
  statement.location = location_;
  statement.scope = scope_.back();
  if (lexer_.accept("@")) {
    statement.is_guard_negated = lexer_.accept("!");
    statement.guard = find_register(std::string(lexer_.next().text));
  }
  statement.opcode = lexer_.next().text;
  if (lexer_.accept(":")) {
    function_->labels.push_back({std::move(statement.opcode), scope_.back(),
                                 static_cast<int>(function_->statements.size())});
    return;
  }
  split_opcode(&statement);
  statement.operands = list(";");
  function_->statements.push_back(std::move(statement));
}

// ---- operands ----------------------------------------------------------------------------------

std::vector<Operand> Parser::list(std::string_view end) {
  std::vector<Operand> result;
  while (!lexer_.accept(end)) {
    result.push_back(operand());
    if (!lexer_.peek().is(end)) lexer_.expect(",");
  }
  return result;
}

Operand Parser::operand() {
  Operand first = bare_operand();
  if (!lexer_.accept("|")) return first;
  Operand pair;
  pair.kind = Operand::Kind::kPair;
  pair.elements.push_back(std::move(first));
  pair.elements.push_back(bare_operand());
  return pair;
}

Operand Parser::bare_operand() {
  Operand result;
  if (lexer_.accept("{")) {
    result.kind = Operand::Kind::kVector;
    result.elements = list("}");
    return result;
  }
  if (lexer_.accept("(")) {
    result.kind = Operand::Kind::kVector;
    result.elements = list(")");
    return result;
  }
  if (lexer_.accept("[")) {
    result.kind = Operand::Kind::kAddress;
    result.elements.push_back(bare_operand());
    while (!lexer_.accept("]")) {
      const bool is_sum = lexer_.accept("+");
      const bool is_negative = lexer_.accept("-");
      if (!is_sum && !is_negative) lexer_.expect("]");
      result.value += number(lexer_.next().text, is_negative).value;
    }
    return result;
  }
  if (lexer_.accept("!")) {
    result = bare_operand();
    result.is_negated = true;
    return result;
  }
  if (lexer_.accept("-")) return number(lexer_.next().text, true);
  const Token token = lexer_.next();
  if (token.text >= "0" && token.text[0] <= '9') return number(token.text, false);
  if (token.is("_")) return result;
  result.name = token.text;
  result.id = find_register(result.name);
  result.kind = result.id >= 0 ? Operand::Kind::kRegister : Operand::Kind::kSymbol;
  return result;
}

// 12, 0x1F, 0f3F800000 (float), 0d3FF0000000000000 (double)
Operand Parser::number(std::string_view text, bool is_negative) {
  Operand result;
  result.kind = Operand::Kind::kImmediate;
  int base = 10;
  if (text.size() > 2 && text[0] == '0' && std::string_view("xXfFdD").find(text[1]) != text.npos) {
    base = 16;
    text.remove_prefix(2);
  } else if (text.size() > 1 && text[0] == '0') {
    base = 8;
  }
  uint64_t value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value, base);
  result.value = static_cast<int64_t>(is_negative ? 0 - value : value);
  return result;
}

int Parser::find_register(const std::string& name) const {
  for (auto names = register_names_.rbegin(); names != register_names_.rend(); ++names) {
    const auto found = names->find(name);
    if (found != names->end()) return found->second;
  }
  return -1;
}

}  // namespace

Type parse_type(std::string_view modifier) {
  using Kind = Type::Kind;
  if (modifier == "pred") return {Kind::kPredicate, 1};
  if (modifier == "f16x2") return {Kind::kFloat, 32, true};
  if (modifier == "bf16x2") return {Kind::kBFloat, 32, true};
  if (modifier == "bf16") return {Kind::kBFloat, 16};
  if (modifier.size() < 2 || modifier.size() > 3) return {};
  const int bits = to_int(modifier.substr(1));
  if (bits != 8 && bits != 16 && bits != 32 && bits != 64) return {};
  switch (modifier[0]) {
    case 'u':
      return {Kind::kUnsigned, bits};
    case 's':
      return {Kind::kSigned, bits};
    case 'b':
      return {Kind::kBits, bits};
    case 'f':
      return {Kind::kFloat, bits};
    default:
      return {};
  }
}

bool Statement::has(std::string_view modifier) const {
  for (size_t i = 1; i < parts.size(); ++i) {
    if (parts[i] == modifier) return true;
  }
  return false;
}

const Function* Module::find(std::string_view name) const {
  for (const Function& function : functions) {
    if (function.name == name) return &function;
  }
  return nullptr;
}

std::string Module::describe(const Statement& statement) const {
  std::string text;
  auto place = [&](int file, int line) {
    const auto found = files.find(file);
    return (found == files.end() ? "?" : found->second) + ":" + std::to_string(line);
  };
  const Location& location = statement.location;
  if (location.line != 0) text += place(location.file, location.line);
  if (location.inlined_line != 0) {
    text += " inlined at " + place(location.inlined_file, location.inlined_line);
  }
  return text + (text.empty() ? "" : ", ") + "ptx line " + std::to_string(statement.ptx_line) +
         " " + statement.opcode;
}

std::unique_ptr<Module> parse(std::string_view text) { return Parser(text).run(); }

}  // namespace emulator::ptx
