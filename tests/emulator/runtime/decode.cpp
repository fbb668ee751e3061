// Turns parsed PTX functions into instructions with handlers.
#include "runtime/decode.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "runtime/machine.h"
#include "runtime/specials.h"

namespace emulator {
namespace {

constexpr size_t kSharedGap = 16;     // between objects, so that overruns land in nothing
constexpr size_t kMaxAlignment = 16;  // of parameters in the scratch memory of calls

constexpr Family kFamilies[] = {decode_integer, decode_bits,    decode_float,    decode_half,
                                decode_select,  decode_convert, decode_params,   decode_memory,
                                decode_atomic,  decode_async,   decode_mbarrier, decode_matrix,
                                decode_wgmma,   decode_warp,    decode_barrier,  decode_control};

size_t round_up(size_t value, size_t alignment) {
  return (value + alignment - 1) / alignment * alignment;
}

uint32_t slot_bytes(int bits) { return bits == 1 ? 4 : bits == 64 ? 8 * kLanes : 4 * kLanes; }

void run_unsupported(Execution& x, const Instruction& i) {
  x.fail("unsupported PTX" + i.text, -1, FaultKind::kUnsupported);
}

}  // namespace

ptx::Type first_type(const ptx::Statement& statement) {
  for (size_t i = 1; i < statement.parts.size(); ++i) {
    const ptx::Type type = ptx::parse_type(statement.parts[i]);
    if (type.kind != ptx::Type::Kind::kNone) return type;
  }
  return {};
}

ptx::Type second_type(const ptx::Statement& statement) {
  bool is_second = false;
  for (size_t i = 1; i < statement.parts.size(); ++i) {
    const ptx::Type type = ptx::parse_type(statement.parts[i]);
    if (type.kind == ptx::Type::Kind::kNone) continue;
    if (is_second) return type;
    is_second = true;
  }
  return {};
}

Decoder::Decoder(const Surroundings& surroundings, const ptx::Function& source, Function* result)
    : surroundings_(surroundings), source_(source), result_(result) {}

void Decoder::run() {
  result_->name = source_.name;
  result_->module = surroundings_.module;
  result_->max_threads = source_.max_threads;
  place_registers();
  place_params();
  place_shared();
  place_locals();
  for (const ptx::Label& label : source_.labels) {
    labels_[{label.name, label.scope}] = label.statement;
  }
  result_->code.resize(result_->statements.size() + 1);
  for (size_t s = 0; s < result_->statements.size(); ++s) {
    decode(result_->statements[s], &result_->code[s]);
  }
  Instruction& end = result_->code.back();  // running off the end
  end.run = run_unsupported;
  end.text = ": no ret at the end of a function";
  end.statement = result_->statements.empty() ? nullptr : &result_->statements.back();
}

// ---- memory of a function ----------------------------------------------------------------------

void Decoder::place_registers() {
  size_t offset = 0;
  for (const ptx::Register& declared : source_.registers) {
    register_offsets_.push_back(static_cast<uint32_t>(offset));
    offset += slot_bytes(declared.type.bits);
  }
  result_->register_count = static_cast<uint32_t>(source_.registers.size());
  result_->local_base = static_cast<uint32_t>(offset);
  result_->frame_bytes = offset + slot_bytes(64);
}

void Decoder::place_params() {
  for (const ptx::Variable& param : source_.params) {
    result_->param_bytes = round_up(result_->param_bytes, param.alignment);
    param_offsets_[param.name] = result_->param_bytes;
    result_->params.push_back({result_->param_bytes, param.bytes});
    result_->param_bytes += param.bytes;
  }
  size_t& scratch = result_->scratch_bytes;
  for (const ptx::Variable& param : source_.results) {
    result_->result_offset = scratch;
    result_->result_bytes = param.bytes;
    scratch = round_up(scratch + param.bytes, kMaxAlignment);
  }
  for (const ptx::Variable& param : source_.call_params) {
    call_param_offsets_[{param.name, param.scope}] = scratch;
    scratch = round_up(scratch + param.bytes, kMaxAlignment);
  }
}

// Static objects, then the dynamic part, aligned as declared and no better.
void Decoder::place_shared() {
  size_t offset = 0;
  size_t declared_bytes = 0;
  auto place = [&](const ptx::Variable& variable) {
    declared_bytes = round_up(declared_bytes, variable.alignment) + variable.bytes;
    offset = round_up(offset, variable.alignment);
    shared_addresses_[variable.name] = offset;
    result_->shared.push_back(
        {static_cast<uint32_t>(offset), static_cast<uint32_t>(variable.bytes)});
    offset += variable.bytes + kSharedGap;
  };
  for (const ptx::Variable& variable : surroundings_.module->shared) place(variable);
  for (const ptx::Variable& variable : source_.shared) place(variable);
  result_->static_shared_bytes = static_cast<uint32_t>(declared_bytes);
  const size_t alignment = std::max<size_t>(surroundings_.module->dynamic_alignment, 16);
  offset = round_up(offset, alignment);
  if (offset % (2 * alignment) == 0 && alignment < 1024) offset += alignment;
  result_->dynamic_offset = static_cast<uint32_t>(offset);
  for (const std::string& name : surroundings_.module->dynamic_names) {
    shared_addresses_[name] = offset;
  }
}

void Decoder::place_locals() {
  for (const ptx::Variable& variable : source_.local) {
    result_->local_bytes = round_up(result_->local_bytes, variable.alignment);
    local_offsets_[variable.name] = result_->local_bytes;
    result_->local_bytes += variable.bytes;
  }
  result_->local_bytes = round_up(result_->local_bytes, kMaxAlignment);
}

// ---- statements --------------------------------------------------------------------------------

void Decoder::decode(const ptx::Statement& statement, Instruction* instruction) {
  instruction_ = instruction;
  instruction->statement = &statement;
  if (statement.guard >= 0) {
    instruction->guard = static_cast<int32_t>(register_offsets_[statement.guard]);
    instruction->guard_register = static_cast<uint32_t>(statement.guard);
    instruction->is_guard_negated = statement.is_guard_negated;
  }
  try {
    for (const Family family : kFamilies) {
      if (family(*this, statement, instruction)) return;
    }
    throw Unsupported{""};
  } catch (const Unsupported& unsupported) {
    *instruction = {};
    instruction->statement = &statement;
    instruction->run = run_unsupported;
    if (!unsupported.reason.empty()) instruction->text = ": " + unsupported.reason;
  }
}

// ---- operands ----------------------------------------------------------------------------------

Slot Decoder::constant(uint64_t value, int bits) {
  if (bits < 64) value &= (uint64_t{1} << std::max(bits, 1)) - 1;
  if (bits == 1 && value != 0) value = kAllLanes;
  const uint32_t bytes = slot_bytes(bits);
  const auto [found, is_new] = constant_offsets_.try_emplace(
      {value, static_cast<int>(bytes)}, static_cast<uint32_t>(result_->constants.size()));
  if (is_new) {
    const uint32_t element = bits == 64 ? 8 : 4;
    result_->constants.resize(result_->constants.size() + bytes);
    char* begin = result_->constants.data() + found->second;
    for (uint32_t at = 0; at < bytes; at += element) std::memcpy(begin + at, &value, element);
  }
  return {found->second, Bank::kConstant};
}

bool Decoder::find_address(const std::string& name, uint64_t* address) const {
  if (const auto shared = shared_addresses_.find(name); shared != shared_addresses_.end()) {
    *address = shared->second;
    return true;
  }
  if (const auto global = surroundings_.globals.find(name); global != surroundings_.globals.end()) {
    *address = reinterpret_cast<uint64_t>(global->second);
    return true;
  }
  if (const auto param = param_offsets_.find(name); param != param_offsets_.end()) {
    *address = param->second;  // for ld.param through a register, and cvta.param
    return true;
  }
  return false;
}

Slot Decoder::symbol(const std::string& name, int bits) {
  if (const int special = find_special(name); special >= 0) {
    if (bits == 64) throw Unsupported{name + " as a 64-bit value"};
    return {static_cast<uint32_t>(special) * 4 * kLanes, Bank::kSpecial};
  }
  if (name == "WARP_SZ") return constant(kLanes, bits);
  if (const auto local = local_offsets_.find(name); local != local_offsets_.end()) {
    if (local->second != 0 || bits != 64) throw Unsupported{"address of " + name};
    return {result_->local_base, Bank::kFrame};
  }
  uint64_t address = 0;
  if (!find_address(name, &address)) throw Unsupported{"unknown name " + name};
  return constant(address, bits);
}

Slot Decoder::source_as_is(const ptx::Operand& operand, int bits, bool* is_wide) {
  *is_wide = bits == 64;
  switch (operand.kind) {
    case ptx::Operand::Kind::kRegister: {
      const int register_bits = source_.registers[operand.id].type.bits;
      if ((register_bits == 1) != (bits == 1)) throw Unsupported{"predicate among values"};
      *is_wide = register_bits == 64;
      instruction_->reads.push_back(static_cast<uint32_t>(operand.id));
      return {register_offsets_[operand.id], Bank::kFrame};
    }
    case ptx::Operand::Kind::kImmediate:
      return constant(static_cast<uint64_t>(operand.value), bits);
    case ptx::Operand::Kind::kSymbol:
      return symbol(operand.name, bits);
    default:
      throw Unsupported{"kind of operand"};
  }
}

Slot Decoder::source(const ptx::Operand& operand, int bits) {
  bool is_wide = false;
  const Slot slot = source_as_is(operand, bits, &is_wide);
  if (is_wide != (bits == 64)) throw Unsupported{"width of an operand"};
  return slot;
}

Slot Decoder::predicate(const ptx::Operand& operand) { return source(operand, 1); }

Slot Decoder::result_as_is(const ptx::Operand& operand, bool* is_wide) {
  if (operand.kind != ptx::Operand::Kind::kRegister) throw Unsupported{"kind of result"};
  *is_wide = source_.registers[operand.id].type.bits == 64;
  instruction_->writes.push_back(static_cast<uint32_t>(operand.id));
  return {register_offsets_[operand.id], Bank::kFrame};
}

Slot Decoder::result(const ptx::Operand& operand, int bits) {
  bool is_wide = false;
  const Slot slot = result_as_is(operand, &is_wide);
  const bool is_predicate = source_.registers[operand.id].type.bits == 1;
  if (is_wide != (bits == 64) || is_predicate != (bits == 1)) {
    throw Unsupported{"width of a result"};
  }
  return slot;
}

void Decoder::results(const ptx::Operand& operand, int bits) {
  const bool is_pair = operand.kind == ptx::Operand::Kind::kPair;
  const ptx::Operand& first = is_pair ? operand.elements[0] : operand;
  if (first.kind != ptx::Operand::Kind::kSink) {
    instruction_->d = result(first, bits);
    instruction_->has_d = true;
  }
  if (is_pair && operand.elements[1].kind != ptx::Operand::Kind::kSink) {
    instruction_->p = result(operand.elements[1], 1);
    instruction_->has_p = true;
  }
}

void Decoder::vector_sources(const ptx::Operand& operand, int bits, size_t count) {
  const bool is_vector = operand.kind == ptx::Operand::Kind::kVector;
  if ((is_vector ? operand.elements.size() : 1) != count) throw Unsupported{"size of a vector"};
  for (size_t e = 0; e < count; ++e) {
    instruction_->sources.push_back(source(is_vector ? operand.elements[e] : operand, bits));
  }
}

void Decoder::vector_results(const ptx::Operand& operand, int bits, size_t count) {
  const bool is_vector = operand.kind == ptx::Operand::Kind::kVector;
  if ((is_vector ? operand.elements.size() : 1) != count) throw Unsupported{"size of a vector"};
  for (size_t e = 0; e < count; ++e) {
    instruction_->results.push_back(result(is_vector ? operand.elements[e] : operand, bits));
  }
}

void Decoder::address(const ptx::Operand& operand) {
  if (operand.kind != ptx::Operand::Kind::kAddress) throw Unsupported{"an address expected"};
  const ptx::Operand& base = operand.elements[0];
  instruction_->offset = operand.value;
  if (base.kind == ptx::Operand::Kind::kSymbol) {
    if (const auto local = local_offsets_.find(base.name); local != local_offsets_.end()) {
      instruction_->offset += static_cast<int64_t>(local->second);
      instruction_->a = {result_->local_base, Bank::kFrame};
    } else {
      instruction_->a = symbol(base.name, 64);
    }
    return;
  }
  bool is_wide = false;
  instruction_->a = source_as_is(base, 64, &is_wide);
  instruction_->is_address_narrow = !is_wide;
}

void Decoder::second_address(const ptx::Operand& operand) {
  const Instruction first = *instruction_;
  address(operand);
  instruction_->b = std::exchange(instruction_->a, first.a);
  instruction_->second_offset = std::exchange(instruction_->offset, first.offset);
  instruction_->is_second_narrow =
      std::exchange(instruction_->is_address_narrow, first.is_address_narrow);
}

size_t Decoder::param(const std::string& name, int scope, ParamSpace* space) const {
  for (int s = scope; s >= 0; s = source_.scopes[s]) {
    const auto found = call_param_offsets_.find({name, s});
    if (found == call_param_offsets_.end()) continue;
    *space = ParamSpace::kCall;
    return found->second;
  }
  for (const ptx::Variable& declared : source_.results) {
    if (declared.name != name) continue;
    *space = ParamSpace::kResult;
    return result_->result_offset;
  }
  const auto found = param_offsets_.find(name);
  if (found == param_offsets_.end()) throw Unsupported{"unknown parameter " + name};
  *space = source_.is_kernel ? ParamSpace::kLaunch : ParamSpace::kOwn;
  return found->second;
}

int64_t Decoder::immediate(const ptx::Operand& operand) const {
  if (operand.kind != ptx::Operand::Kind::kImmediate) throw Unsupported{"a number expected"};
  return operand.value;
}

int Decoder::label(const std::string& name, int scope) const {
  for (int s = scope; s >= 0; s = source_.scopes[s]) {
    const auto found = labels_.find({name, s});
    if (found != labels_.end()) return found->second;
  }
  throw Unsupported{"unknown label " + name};
}

void decode_function(const Surroundings& surroundings, const ptx::Function& source,
                     std::vector<ptx::Statement> statements, Function* result) {
  result->statements = std::move(statements);
  Decoder(surroundings, source, result).run();
}

}  // namespace emulator
