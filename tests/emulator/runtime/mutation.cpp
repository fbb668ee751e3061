// Deliberate damage to kernels.
#include "runtime/mutation.h"

#include <algorithm>
#include <stdexcept>

namespace emulator {
namespace {

using Kind = Mutation::Kind;
using ptx::Operand;
using ptx::Statement;

constexpr std::string_view kWaitOpcode = "cp.async.wait_group";

// An opcode and all its modifiers, or its beginning up to a dot.
bool matches(const Statement& statement, std::string_view opcode) {
  return statement.opcode.starts_with(opcode) &&
         (statement.opcode.size() == opcode.size() || statement.opcode[opcode.size()] == '.' ||
          opcode.ends_with('.'));
}

// The first two source operands if they are of one kind; else the first two elements of the last
// vector that has two (b of mma, the value of a vector store).
std::pair<Operand*, Operand*> swappable(Statement* statement) {
  auto& operands = statement->operands;
  auto is_value = [](const Operand& operand) {
    return operand.kind == Operand::Kind::kRegister || operand.kind == Operand::Kind::kImmediate;
  };
  if (operands.size() >= 3 && is_value(operands[1]) && is_value(operands[2])) {
    return {&operands[1], &operands[2]};
  }
  const size_t last_source = std::min<size_t>(operands.size(), 3);
  for (size_t o = last_source; o-- > 1;) {
    auto& elements = operands[o].elements;
    if (operands[o].kind == Operand::Kind::kVector && elements.size() >= 2) {
      return {&elements[0], &elements[1]};
    }
  }
  return {nullptr, nullptr};
}

// An address in global or shared memory.
Operand* shiftable(Statement* statement) {
  for (const char* space : {"param", "param::entry", "param::func", "local", "const"}) {
    if (statement->has(space)) return nullptr;
  }
  for (Operand& operand : statement->operands) {
    if (operand.kind == Operand::Kind::kAddress) return &operand;
  }
  return nullptr;
}

// Where an asynchronous copy reads.
Operand* copied_source(Statement* statement) {
  if (!statement->opcode.starts_with("cp.async.") || statement->operands.size() < 3) return nullptr;
  return &statement->operands[1];
}

// The bytes that an mbarrier is to expect, or the phase that is waited for.
Operand* addable(Statement* statement) {
  if (statement->parts[0] != "mbarrier") return nullptr;
  Operand& last = statement->operands.back();
  const bool is_value =
      last.kind == Operand::Kind::kRegister || last.kind == Operand::Kind::kImmediate;
  return is_value ? &last : nullptr;
}

bool is_place(const Mutation& mutation, Statement* statement) {
  switch (mutation.kind) {
    case Kind::kNone:
      return false;
    case Kind::kDrop:
      return matches(*statement, mutation.opcode);
    case Kind::kWait:
      return statement->opcode == kWaitOpcode;
    case Kind::kSwap:
      return matches(*statement, mutation.opcode) && swappable(statement).first != nullptr;
    case Kind::kUnpredicate:
      return statement->guard >= 0;
    case Kind::kShift:
      return shiftable(statement) != nullptr;
    case Kind::kSource:
      return copied_source(statement) != nullptr;
    case Kind::kAdd:
      return matches(*statement, mutation.opcode) && addable(statement) != nullptr;
  }
  return false;
}

void apply(const Mutation& mutation, std::vector<Statement>* statements, size_t place) {
  Statement& statement = (*statements)[place];
  switch (mutation.kind) {
    case Kind::kNone:
      return;
    case Kind::kDrop:  // statements are numbered by labels: one must stay
      statement.opcode = "pmevent";
      statement.parts = {"pmevent"};
      statement.operands.clear();
      return;
    case Kind::kWait:
      statement.operands.at(0).value =
          std::max<int64_t>(0, statement.operands.at(0).value + mutation.amount);
      return;
    case Kind::kSwap: {
      const auto [first, second] = swappable(&statement);
      std::swap(*first, *second);
      return;
    }
    case Kind::kUnpredicate:
      statement.guard = -1;
      return;
    case Kind::kShift:
      shiftable(&statement)->value += mutation.amount;
      return;
    case Kind::kSource:
      copied_source(&statement)->value += mutation.amount;
      return;
    case Kind::kAdd:
      addable(&statement)->value += mutation.amount;
  }
}

int to_number(std::string_view text) {
  try {
    return std::stoi(std::string(text));
  } catch (const std::exception&) {
    throw std::invalid_argument("mutation: a number expected, not '" + std::string(text) + "'");
  }
}

Kind parse_kind(std::string_view name) {
  if (name == "drop") return Kind::kDrop;
  if (name == "wait") return Kind::kWait;
  if (name == "swap") return Kind::kSwap;
  if (name == "unpred") return Kind::kUnpredicate;
  if (name == "shift") return Kind::kShift;
  if (name == "source") return Kind::kSource;
  if (name == "add") return Kind::kAdd;
  throw std::invalid_argument("mutation: unknown kind '" + std::string(name) + "'");
}

std::vector<std::string_view> split(std::string_view text) {
  std::vector<std::string_view> fields;
  for (size_t colon; (colon = text.find(':')) != text.npos; text.remove_prefix(colon + 1)) {
    fields.push_back(text.substr(0, colon));
  }
  fields.push_back(text);
  return fields;
}

}  // namespace

Mutation Mutation::parse(std::string_view text) {
  Mutation mutation;
  if (text.empty()) return mutation;
  const size_t at = text.find('@');
  if (at != text.npos) mutation.kernel = text.substr(at + 1);
  const auto fields = split(text.substr(0, at));
  mutation.kind = parse_kind(fields[0]);
  const auto is_any = [&](std::initializer_list<Kind> kinds) {
    return std::find(kinds.begin(), kinds.end(), mutation.kind) != kinds.end();
  };
  const bool has_opcode = is_any({Kind::kDrop, Kind::kSwap, Kind::kAdd});
  const bool has_amount = is_any({Kind::kWait, Kind::kShift, Kind::kSource, Kind::kAdd});
  if (fields.size() != 2u + has_opcode + has_amount) {
    throw std::invalid_argument("mutation: wrong number of fields in '" + std::string(text) + "'");
  }
  if (has_opcode) mutation.opcode = fields[1];
  mutation.number = to_number(fields[has_opcode ? 2 : 1]);
  if (has_amount) mutation.amount = to_number(fields.back());
  return mutation;
}

Mutation Mutation::pattern(std::string_view text) {
  Mutation mutation;
  const size_t colon = text.find(':');
  if (colon == text.npos || text.substr(colon).starts_with("::")) {
    mutation.kind = Kind::kDrop;
    mutation.opcode = text;
  } else {
    mutation.kind = parse_kind(text.substr(0, colon));
    mutation.opcode = text.substr(colon + 1);
  }
  return mutation;
}

std::vector<size_t> find_places(const Mutation& mutation, const ptx::Function& kernel) {
  std::vector<size_t> places;
  for (size_t s = 0; s < kernel.statements.size(); ++s) {
    Statement statement = kernel.statements[s];
    if (is_place(mutation, &statement)) places.push_back(s);
  }
  return places;
}

void mutate(const Mutation& mutation, int number, std::vector<Statement>* statements) {
  for (size_t s = 0; s < statements->size(); ++s) {
    if (!is_place(mutation, &(*statements)[s]) || number-- > 0) continue;
    apply(mutation, statements, s);
    return;
  }
}

}  // namespace emulator
