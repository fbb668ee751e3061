// The emulated device of this library, and launches on it.
#include "runtime/device.h"

#include <chrono>
#include <cstdio>
#include <cstring>
#include <utility>

namespace emulator {
namespace {

thread_local cudaError_t last_error = cudaSuccess;

cudaError_t error_of(FaultKind kind) {
  switch (kind) {
    case FaultKind::kMisaligned:
      return cudaErrorMisalignedAddress;
    case FaultKind::kIllegalAddress:
      return cudaErrorIllegalAddress;
    case FaultKind::kTimeout:
      return cudaErrorLaunchTimeout;
    case FaultKind::kAssert:
      return cudaErrorAssert;
    case FaultKind::kUnsupported:
      return cudaErrorInvalidPtx;
    case FaultKind::kFailure:
      break;
  }
  return cudaErrorLaunchFailure;
}

std::string describe(const LaunchConfig& config) {
  char text[200];
  std::snprintf(text, sizeof text, "grid %u,%u,%u block %u,%u,%u dynamic %zu stream %p",
                config.grid.x, config.grid.y, config.grid.z, config.block.x, config.block.y,
                config.block.z, config.dynamic_bytes, static_cast<void*>(config.stream));
  return config.cluster == 1 ? text : text + (" cluster " + std::to_string(config.cluster));
}

// What a real device would refuse.
cudaError_t check_config(Device& device, const Kernel& kernel, const Function& function,
                         const LaunchConfig& config) {
  constexpr unsigned kMostBlocksYZ = 65535;
  const size_t threads = size_t{config.block.x} * config.block.y * config.block.z;
  const dim3& grid = config.grid;
  if (threads == 0 || threads > 1024 || config.block.z > 64 || grid.x == 0 || grid.y == 0 ||
      grid.z == 0 || grid.y > kMostBlocksYZ || grid.z > kMostBlocksYZ) {
    return device.fail(cudaErrorInvalidConfiguration, "invalid configuration: " + describe(config));
  }
  if (threads > static_cast<size_t>(function.max_threads)) {
    return device.fail(cudaErrorInvalidValue, "block larger than __launch_bounds__ (" +
                                                  std::to_string(function.max_threads) +
                                                  "): " + describe(config));
  }
  if (config.cluster > 1 && device.options.compute_capability < 90) {
    return device.fail(cudaErrorNotSupported, "clusters before capability 9.0");
  }
  if (config.cluster == 0 || config.cluster > kMostClusterBlocks || grid.x % config.cluster != 0) {
    return device.fail(cudaErrorInvalidClusterSize,
                       "more than eight blocks in a cluster, or a grid that is not made of whole "
                       "ones: " +
                           describe(config));
  }
  const size_t shared = config.dynamic_bytes + function.static_shared_bytes;
  const size_t limit =
      kernel.has_limit
          ? std::max(kSharedDefault,
                     std::min(kSharedOptIn, kernel.dynamic_limit + function.static_shared_bytes))
          : kSharedDefault;
  if (shared <= limit) return cudaSuccess;
  return device.fail(
      cudaErrorInvalidValue,
      "too much shared memory (cudaFuncSetAttribute missing or too small): " + describe(config));
}

void run(Device& device, const Function& function, const LaunchConfig& config, void** args) {
  Random random(device.options.seed * 1'000'003 + device.launches_of_seed++);
  const auto mode = static_cast<ScheduleMode>(random.below(4));
  Machine machine{
      .kernel = &function,
      .grid = {config.grid.x, config.grid.y, config.grid.z},
      .block = {config.block.x, config.block.y, config.block.z},
      .dynamic_shared_bytes = static_cast<uint32_t>(config.dynamic_bytes),
      .cluster_blocks = config.cluster,
      .params = std::vector<char>(function.param_bytes),
      .options = device.options,
      .counters = device.counters,
      .memory = device.memory,
      .launch_floor = device.clock,
      .highest_clock = device.clock,
      .random = random,
      .mode = mode,
      .resident = {},
      .engine = {},
      .flags = {},
  };
  for (size_t p = 0; p < function.params.size(); ++p) {
    std::memcpy(machine.params.data() + function.params[p].offset, args[p],
                function.params[p].bytes);
  }
  const auto start = std::chrono::steady_clock::now();
  try {
    run_launch(&machine);
  } catch (...) {
    device.clock = machine.highest_clock + 1;
    throw;
  }
  device.clock = machine.highest_clock + 1;
  device.counters.run_s +=
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

Device& Device::get() {
  static Device* device = new Device;  // outlives the static objects that register kernels
  return *device;
}

cudaError_t Device::fail(cudaError_t error, const std::string& why) {
  message = why;
  return last_error = error;
}

cudaError_t Device::fail(const Fault& fault) { return fail(error_of(fault.kind), fault.what()); }

cudaError_t Device::take_error(bool forgets) {
  return forgets ? std::exchange(last_error, cudaSuccess) : last_error;
}

int Device::mutated_place(const Image& image, const std::string& kernel) {
  if (mutation.kind == Mutation::Kind::kNone) return -1;
  int before = 0;
  int place = -1;
  each_kernel(mutation.kernel, [&](const Image& of, const ptx::Function& function) {
    const int count = static_cast<int>(find_places(mutation, function).size());
    if (&of == &image && function.name == kernel && mutation.number >= before &&
        mutation.number < before + count) {
      place = mutation.number - before;
    }
    before += count;
  });
  return place;
}

const Function& Device::decoded(Kernel* kernel) {
  return kernel->image->kernel(kernel->name, mutation, mutated_place(*kernel->image, kernel->name));
}

cudaError_t launch(const void* stub, const LaunchConfig& config, void** args) {
  Device& device = Device::get();
  const std::lock_guard lock(device.mutex);
  const auto found = device.kernels.find(stub);
  if (found == device.kernels.end()) {
    return device.fail(cudaErrorInvalidDeviceFunction, "launch of an unregistered function");
  }
  Kernel& kernel = found->second;
  device.log += "launch " + describe(config) + " " + kernel.name + "\n";
  ++device.launched[kernel.name];
  ++device.counters.launches;
  try {
    const Function& function = device.decoded(&kernel);
    const cudaError_t error = check_config(device, kernel, function, config);
    if (error != cudaSuccess) return error;
    run(device, function, config, args);
  } catch (const Fault& fault) {
    return device.fail(fault);
  }
  return cudaSuccess;
}

}  // namespace emulator
