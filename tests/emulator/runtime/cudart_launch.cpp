// The CUDA runtime's entry points for kernels: what nvcc's host stubs call, launches, attributes of
// functions and of the device.
#include <algorithm>

#include "runtime/device.h"

using emulator::Device;
using emulator::Kernel;

namespace {

// The kernel of a stub; null, with the error set, if there is none.
Kernel* find_kernel(Device& device, const void* stub, const char* caller) {
  const auto found = device.kernels.find(stub);
  if (found != device.kernels.end()) return &found->second;
  device.fail(cudaErrorInvalidDeviceFunction, std::string(caller) + ": unknown function");
  return nullptr;
}

// Blocks of a cluster, along x.
unsigned cluster_of(const cudaLaunchConfig_t& config) {
  unsigned blocks = 1;
  for (unsigned a = 0; a < config.numAttrs; ++a) {
    if (config.attrs[a].id != cudaLaunchAttributeClusterDimension) continue;
    blocks = config.attrs[a].val.clusterDim.x;
  }
  return blocks;
}

}  // namespace

extern "C" {

// ---- registration, from static objects that nvcc makes -----------------------------------------

void** __cudaRegisterFatBinary(void* wrapper) {
  struct Wrapper {
    int magic;
    int version;
    const char* data;
    void* next;
  };
  Device& device = Device::get();
  device.images.push_back(
      std::make_unique<emulator::Image>(static_cast<const Wrapper*>(wrapper)->data));
  return reinterpret_cast<void**>(device.images.back().get());
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 0; }

void __cudaRegisterFunction(void** image, const char* stub, char*, const char* name, int, uint3*,
                            uint3*, dim3*, dim3*, int*) {
  Device::get().kernels[stub] = {reinterpret_cast<emulator::Image*>(image), name};
}
void __cudaRegisterVar(void** image, char* host, char*, const char* name, int, size_t, int, int) {
  Device::get().variables[host] = {reinterpret_cast<emulator::Image*>(image), name};
}

// ---- launches ----------------------------------------------------------------------------------

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t bytes, CUstream_st* stream) {
  Device::get().pushed = {grid, block, bytes, stream};
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* bytes, void* stream) {
  const emulator::LaunchConfig& pushed = Device::get().pushed;
  *grid = pushed.grid;
  *block = pushed.block;
  *bytes = pushed.dynamic_bytes;
  *static_cast<cudaStream_t*>(stream) = pushed.stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* stub) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(stub));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** args,
                               size_t bytes, cudaStream_t stream) {
  return emulator::launch(kernel, {grid, block, bytes, stream}, args);
}

cudaError_t cudaLaunchKernel(const void* stub, dim3 grid, dim3 block, void** args, size_t bytes,
                             cudaStream_t stream) {
  return emulator::launch(stub, {grid, block, bytes, stream}, args);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* stub, void** args) {
  Device& device = Device::get();
  for (unsigned a = 0; a < config->numAttrs; ++a) {
    const cudaLaunchAttribute& attribute = config->attrs[a];
    const auto& cluster = attribute.val.clusterDim;
    if (attribute.id == cudaLaunchAttributeClusterDimension && cluster.y * cluster.z != 1) {
      return device.fail(cudaErrorNotSupported, "only clusters along x are emulated");
    }
    if (attribute.id == cudaLaunchAttributeCooperative && attribute.val.cooperative != 0) {
      return device.fail(cudaErrorNotSupported, "cooperative launches are not emulated");
    }
  }
  return emulator::launch(stub,
                          {config->gridDim, config->blockDim, config->dynamicSmemBytes,
                           config->stream, cluster_of(*config)},
                          args);
}

// ---- errors ------------------------------------------------------------------------------------

cudaError_t cudaGetLastError() { return Device::get().take_error(true); }
cudaError_t cudaPeekAtLastError() { return Device::get().take_error(false); }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
    case cudaErrorMisalignedAddress:
      return "cudaErrorMisalignedAddress";
    case cudaErrorLaunchTimeout:
      return "cudaErrorLaunchTimeout";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    case cudaErrorAssert:
      return "cudaErrorAssert";
    case cudaErrorInvalidPtx:
      return "cudaErrorInvalidPtx";
    case cudaErrorNotSupported:
      return "cudaErrorNotSupported";
    default:
      return "cudaError of the emulated device";
  }
}
const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaSuccess) return "no error";
  Device& device = Device::get();
  device.text = std::string(cudaGetErrorName(error)) + ": " + device.message;
  return device.text.c_str();
}

// ---- attributes --------------------------------------------------------------------------------

cudaError_t cudaFuncSetAttribute(const void* stub, cudaFuncAttribute attribute, int value) {
  Device& device = Device::get();
  const std::lock_guard lock(device.mutex);
  Kernel* kernel = find_kernel(device, stub, "cudaFuncSetAttribute");
  if (kernel == nullptr) return cudaErrorInvalidDeviceFunction;
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  try {
    const size_t fixed = device.decoded(kernel).static_shared_bytes;
    if (value < 0 || static_cast<size_t>(value) + fixed > emulator::kSharedOptIn) {
      return device.fail(cudaErrorInvalidValue,
                         "cudaFuncSetAttribute: more than 227 KiB of shared memory");
    }
  } catch (const emulator::Fault& fault) {
    return device.fail(fault);
  }
  kernel->dynamic_limit = static_cast<size_t>(value);
  kernel->has_limit = true;
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* stub) {
  Device& device = Device::get();
  const std::lock_guard lock(device.mutex);
  Kernel* kernel = find_kernel(device, stub, "cudaFuncGetAttributes");
  if (kernel == nullptr) return cudaErrorInvalidDeviceFunction;
  try {
    const emulator::Function& function = device.decoded(kernel);
    *attributes = {};
    attributes->sharedSizeBytes = function.static_shared_bytes;
    attributes->localSizeBytes = function.local_bytes;
    attributes->maxThreadsPerBlock = function.max_threads;
    attributes->maxDynamicSharedSizeBytes = static_cast<int>(kernel->dynamic_limit);
    attributes->ptxVersion = kernel->image->capability();
    attributes->binaryVersion = device.options.compute_capability;
  } catch (const emulator::Fault& fault) {
    return device.fail(fault);
  }
  return cudaSuccess;
}

// Registers are not known here. The option "occupancy" caps the result, so that persistent grids
// have fewer blocks than tiles.
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* stub,
                                                                   int threads, size_t bytes,
                                                                   unsigned) {
  constexpr size_t kReserved = 1024;
  constexpr size_t kGranularity = 128;
  constexpr size_t kMostWarps = 64;
  Device& device = Device::get();
  const std::lock_guard lock(device.mutex);
  Kernel* kernel = find_kernel(device, stub, "occupancy");
  if (kernel == nullptr) return cudaErrorInvalidDeviceFunction;
  try {
    const emulator::Function& function = device.decoded(kernel);
    const size_t shared = (bytes + function.static_shared_bytes + kReserved + kGranularity - 1) /
                          kGranularity * kGranularity;
    *blocks = 0;
    if (threads <= 0 || threads > function.max_threads) return cudaSuccess;
    const size_t warps = static_cast<size_t>(threads + 31) / 32;
    *blocks = static_cast<int>(
        std::min({static_cast<size_t>(device.options.occupancy), size_t{32}, kMostWarps / warps,
                  emulator::kSharedOfMultiprocessor / shared}));
  } catch (const emulator::Fault& fault) {
    return device.fail(fault);
  }
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* stub,
                                                          int threads, size_t bytes) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, stub, threads, bytes, 0);
}

// Neighbourhoods are whole but for the last one; a cluster that fits into none is an error.
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void* stub,
                                           const cudaLaunchConfig_t* config) {
  int blocks = 0;
  const unsigned threads = config->blockDim.x * config->blockDim.y * config->blockDim.z;
  const cudaError_t error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(
      &blocks, stub, static_cast<int>(threads), config->dynamicSmemBytes);
  if (error != cudaSuccess) return error;
  const int all = Device::get().options.multiprocessors;
  const int chosen = Device::get().options.neighbours;
  const int neighbours = chosen > 0 ? std::min(chosen, all) : all;
  const int size = static_cast<int>(std::max(cluster_of(*config), 1u));
  *clusters = all / neighbours * (blocks * neighbours / size) + blocks * (all % neighbours) / size;
  if (size > 1 && size > blocks * neighbours) {
    return Device::get().fail(cudaErrorInvalidClusterSize, "");  // an answer, not a fault
  }
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* number) {
  *number = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int number) {
  if (number == 0) return cudaSuccess;
  return Device::get().fail(cudaErrorInvalidDevice, "there is only device 0");
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  Device& device = Device::get();
  const int capability = device.options.compute_capability;
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = device.options.multiprocessors;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = capability / 10;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = capability % 10;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(emulator::kSharedOptIn);
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = static_cast<int>(emulator::kSharedDefault);
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = static_cast<int>(emulator::kSharedOfMultiprocessor);
      break;
    case cudaDevAttrReservedSharedMemoryPerBlock:
    case cudaDevAttrMaxThreadsPerBlock:
      *value = 1024;
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = 2048;
      break;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
    case cudaDevAttrWarpSize:
      *value = 32;
      break;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor:
      *value = 65536;
      break;
    case cudaDevAttrL2CacheSize:
      *value = 50 << 20;
      break;
    case cudaDevAttrMaxGridDimX:
      *value = 0x7FFFFFFF;
      break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ:
      *value = 65535;
      break;
    case cudaDevAttrCooperativeLaunch:
      *value = 0;
      break;
    default:
      return device.fail(
          cudaErrorInvalidValue,
          "device attribute " + std::to_string(static_cast<int>(attribute)) + " is not emulated");
  }
  return cudaSuccess;
}

}  // extern "C"
