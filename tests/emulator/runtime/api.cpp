// What tests call: emulator_api.h.
#include <cstdio>
#include <stdexcept>

#include "emulator_api.h"
#include "runtime/device.h"

using emulator::Device;
using emulator::Mutation;

namespace {

constexpr int kUndefined = 2;  // bit of emu_register_range's rights
constexpr int kReadOnly = 1;

const char* keep(Device& device, std::string text) {
  device.text = std::move(text);
  return device.text.c_str();
}

std::string counters_text(const emulator::Counters& counters) {
  char text[500];
  std::snprintf(
      text, sizeof text,
      "parse_s %.4f run_s %.4f launches %llu warp_instructions %llu thread_instructions %llu "
      "mma_macs %llu async_copies %llu matrix_loads %llu bank_conflict_phases %llu barriers %llu\n",
      counters.parse_s, counters.run_s, static_cast<unsigned long long>(counters.launches),
      static_cast<unsigned long long>(counters.warp_instructions),
      static_cast<unsigned long long>(counters.thread_instructions),
      static_cast<unsigned long long>(counters.mma_macs),
      static_cast<unsigned long long>(counters.async_copies),
      static_cast<unsigned long long>(counters.matrix_loads),
      static_cast<unsigned long long>(counters.bank_conflict_phases),
      static_cast<unsigned long long>(counters.barriers));
  return text;
}

std::string kernel_text(Device& device, emulator::Image& image, const std::string& name) {
  const emulator::Function& kernel =
      image.kernel(name, device.mutation, device.mutated_place(image, name));
  char text[200];
  std::snprintf(text, sizeof text,
                "kernel params %zu/%zuB static_smem %u local %zu maxntid %d inst %zu ",
                kernel.params.size(), kernel.param_bytes, kernel.static_shared_bytes,
                kernel.local_bytes, kernel.max_threads, kernel.statements.size());
  return text + name + "\n";
}

}  // namespace

extern "C" {

void emu_register_range(void* begin, size_t bytes, int rights) {
  Device& device = Device::get();
  const std::lock_guard lock(device.mutex);
  device.memory.add(
      begin, bytes,
      (rights & kReadOnly) != 0 ? emulator::Rights::kReadOnly : emulator::Rights::kReadWrite,
      (rights & kUndefined) != 0);
}
void emu_unregister_range(void* begin) {
  Device& device = Device::get();
  const std::lock_guard lock(device.mutex);
  device.memory.remove(begin);
}

const char* emu_last_error() { return Device::get().message.c_str(); }
void emu_clear() {
  Device& device = Device::get();
  device.message.clear();
  device.log.clear();
  device.take_error(true);
}

int emu_set(const char* key, long value) {
  Device& device = Device::get();
  emulator::Options& options = device.options;
  const std::string_view name = key;
  const int number = static_cast<int>(value);
  if (name == "race") {
    options.race = value != 0;
  } else if (name == "bounds") {
    options.bounds = value != 0;
  } else if (name == "registers") {
    options.registers = value != 0;
  } else if (name == "profile") {
    options.profile = value != 0;
    for (const auto& image : device.images) image->forget_functions();
  } else if (name == "seed") {
    options.seed = static_cast<uint64_t>(value);
    device.launches_of_seed = 0;
  } else if (name == "sms") {
    options.multiprocessors = number;
  } else if (name == "occupancy") {
    options.occupancy = number;
  } else if (name == "neighbours") {
    options.neighbours = number;
  } else if (name == "resident") {
    options.resident = number;
  } else if (name == "async") {
    options.async = static_cast<emulator::AsyncMode>(number);
  } else if (name == "max_spins") {
    options.max_spins = static_cast<uint64_t>(value);
  } else if (name == "max_instructions") {
    options.max_instructions = static_cast<uint64_t>(value);
  } else if (name == "cc") {
    options.compute_capability = number;
  } else {
    return -1;
  }
  return 0;
}

int emu_mutate(const char* spec) {
  Device& device = Device::get();
  const std::lock_guard lock(device.mutex);
  for (const auto& image : device.images) image->forget_functions();
  try {
    device.mutation = Mutation::parse(spec == nullptr ? "" : spec);
  } catch (const std::invalid_argument& error) {
    device.fail(cudaErrorInvalidValue, error.what());
    return -1;
  }
  return 0;
}

int emu_count(const char* pattern, const char* kernel) {
  Device& device = Device::get();
  const std::lock_guard lock(device.mutex);
  try {
    const Mutation wanted = Mutation::pattern(pattern);
    int count = 0;
    device.each_kernel(kernel, [&](const auto&, const emulator::ptx::Function& function) {
      count += static_cast<int>(emulator::find_places(wanted, function).size());
    });
    return count;
  } catch (const std::exception& error) {
    device.fail(cudaErrorInvalidValue, error.what());
    return -1;
  }
}

const char* emu_places(const char* pattern, const char* kernel) {
  Device& device = Device::get();
  const std::lock_guard lock(device.mutex);
  std::string text;
  try {
    const Mutation wanted = Mutation::pattern(pattern);
    device.each_kernel(kernel, [&](const auto& image, const emulator::ptx::Function& function) {
      const emulator::Function* decoded = image.decoded(function.name);
      const bool is_profiled = decoded != nullptr && !decoded->profiles.empty();
      for (const size_t place : emulator::find_places(wanted, function)) {
        const auto counts = is_profiled ? decoded->profiles[place] : emulator::Profile{};
        text += std::to_string(counts.runs) + " " + std::to_string(counts.held) + " " +
                image.describe(function.statements[place]) + "\n";
      }
    });
  } catch (const std::exception& error) {
    device.fail(cudaErrorInvalidValue, error.what());
  }
  return keep(device, text);
}

const char* emu_log() { return Device::get().log.c_str(); }

const char* emu_launched() {
  Device& device = Device::get();
  std::string text;
  for (const auto& [name, count] : device.launched) {
    text += name + " " + std::to_string(count) + "\n";
  }
  return keep(device, text);
}

const char* emu_kernels() {
  Device& device = Device::get();
  std::string text;
  try {
    device.each_kernel("", [&](const auto&, const auto& kernel) { text += kernel.name + "\n"; });
  } catch (const emulator::Fault& fault) {
    text += std::string("error ") + fault.what() + "\n";
  }
  return keep(device, text);
}

const char* emu_report() {
  Device& device = Device::get();
  const std::lock_guard lock(device.mutex);
  std::string text;
  for (const auto& image : device.images) {
    try {
      for (const auto& function : image->module(device.options.compute_capability).functions) {
        if (function.is_kernel) text += kernel_text(device, *image, function.name);
      }
      for (const auto& [opcode, reason] : image->unsupported()) {
        text += "unsupported " + opcode + reason + "\n";
      }
    } catch (const emulator::Fault& fault) {
      text += std::string("error ") + fault.what() + "\n";
    }
  }
  return keep(device, text + counters_text(device.counters));
}

}  // extern "C"
