// Modules of PTX and their decoded functions.
#include <chrono>
#include <cstring>

#include "runtime/device.h"

namespace emulator {
namespace {

constexpr size_t kVariableAlignment = 256;

char* align(char* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  return reinterpret_cast<char*>((address + kVariableAlignment - 1) / kVariableAlignment *
                                 kVariableAlignment);
}

}  // namespace

const ptx::Module& Image::module(int capability) {
  auto best = fat_binary_.ptx.upper_bound(capability);
  if (best == fat_binary_.ptx.begin()) {
    throw Fault(FaultKind::kUnsupported, "no PTX for compute capability " +
                                             std::to_string(capability) +
                                             " in the fat binary:" + fat_binary_.contents);
  }
  --best;
  if (module_ != nullptr && best->first == capability_) return *module_;
  const auto start = std::chrono::steady_clock::now();
  functions_.clear();
  module_ = ptx::parse(best->second);
  capability_ = best->first;
  surroundings_ = {module_.get(), {}, [this](const std::string& name) { return function(name); }};
  allocate_variables();
  Device::get().counters.parse_s +=
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return *module_;
}

void Image::allocate_variables() {
  GlobalMemory& memory = Device::get().memory;
  for (const auto& [name, block] : variables_) memory.remove(align(block.get()));
  variables_.clear();
  for (const ptx::Variable& variable : module_->globals) {
    auto block = std::make_unique<char[]>(variable.bytes + kVariableAlignment);
    char* begin = align(block.get());
    const auto element = static_cast<size_t>(variable.type.bytes());
    for (size_t v = 0; v < variable.values.size(); ++v) {
      std::memcpy(begin + v * element, &variable.values[v], element);
    }
    memory.add(begin, variable.bytes, variable.is_constant ? Rights::kReadOnly : Rights::kReadWrite,
               false, variable.is_constant ? "constant memory" : "a module's variable");
    surroundings_.globals[variable.name] = begin;
    variables_[variable.name] = std::move(block);
  }
}

const Function* Image::function(const std::string& name) {
  const auto known = functions_.find(name);
  if (known != functions_.end()) return known->second.get();
  const ptx::Function* source = module_->find(name);
  if (source == nullptr) return nullptr;
  // Entered before it is decoded: functions may call themselves.
  Function* result = (functions_[name] = std::make_unique<Function>()).get();
  decode_function(surroundings_, *source, source->statements, result);
  return result;
}

const Function& Image::kernel(const std::string& name, const Mutation& mutation, int place) {
  const ptx::Module& parsed = module(Device::get().options.compute_capability);
  const auto known = functions_.find(name);
  if (known != functions_.end()) return *known->second;
  const ptx::Function* source = parsed.find(name);
  if (source == nullptr) throw Fault(FaultKind::kUnsupported, "no PTX of kernel " + name);
  std::vector<ptx::Statement> statements = source->statements;
  if (place >= 0) mutate(mutation, place, &statements);
  auto result = std::make_unique<Function>();
  decode_function(surroundings_, *source, std::move(statements), result.get());
  if (Device::get().options.profile) profile(result.get());
  return *(functions_[name] = std::move(result));
}

const Function* Image::decoded(const std::string& name) const {
  const auto known = functions_.find(name);
  return known == functions_.end() ? nullptr : known->second.get();
}

Range* Image::variable(const std::string& name) {
  module(Device::get().options.compute_capability);
  const auto found = surroundings_.globals.find(name);
  if (found == surroundings_.globals.end()) return nullptr;
  return Device::get().memory.find(found->second, 0);
}

std::map<std::string, std::string> Image::unsupported() {
  std::map<std::string, std::string> result;
  for (const ptx::Function& source : module(Device::get().options.compute_capability).functions) {
    Function decoded;
    decode_function(surroundings_, source, source.statements, &decoded);
    for (size_t s = 0; s + 1 < decoded.code.size(); ++s) {
      const Instruction& i = decoded.code[s];
      if (i.run == decoded.code.back().run) result[i.statement->opcode] = i.text;
    }
  }
  return result;
}

}  // namespace emulator
