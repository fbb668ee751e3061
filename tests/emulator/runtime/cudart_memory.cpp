// The CUDA runtime's entry points for memory and streams. Everything happens at once, in the order
// of the calls.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "runtime/device.h"
#include "runtime/race.h"

using emulator::Device;

namespace {

constexpr size_t kAlignment = 256;

void note(Device& device, const char* what, size_t bytes, cudaStream_t stream) {
  char line[100];
  std::snprintf(line, sizeof line, "%s %zu bytes stream %p\n", what, bytes,
                static_cast<void*>(stream));
  device.log += line;
}

// Whether host code may read or write device memory; notes what it writes.
bool is_allowed(Device& device, const void* pointer, size_t bytes, bool is_write) {
  if (bytes == 0 || !device.options.bounds) return true;
  emulator::Range* range = device.memory.find(pointer, bytes);
  if (range == nullptr) return false;
  if (!is_write) return true;
  if (range->shadow != nullptr) {
    const auto offset = static_cast<const char*>(pointer) - range->begin;
    emulator::mark_written(range->shadow.get(), static_cast<size_t>(offset), bytes);
  }
  return range->rights == emulator::Rights::kReadWrite;
}

}  // namespace

extern "C" {

// New memory is undefined until something writes it.
cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  Device& device = Device::get();
  const std::lock_guard lock(device.mutex);
  *pointer = nullptr;
  if (bytes == 0) return cudaSuccess;
  *pointer = std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
  if (*pointer == nullptr) return device.fail(cudaErrorMemoryAllocation, "out of memory");
  std::memset(*pointer, 0xFF, bytes);
  device.allocations[*pointer] = bytes;
  device.memory.add(*pointer, bytes, emulator::Rights::kReadWrite, true);
  return cudaSuccess;
}
cudaError_t cudaFree(void* pointer) {
  Device& device = Device::get();
  const std::lock_guard lock(device.mutex);
  if (pointer == nullptr) return cudaSuccess;
  if (device.allocations.erase(pointer) == 0) {
    return device.fail(cudaErrorInvalidValue, "cudaFree of an unknown pointer");
  }
  device.memory.remove(pointer);
  std::free(pointer);
  return cudaSuccess;
}
cudaError_t cudaMallocAsync(void** pointer, size_t bytes, cudaStream_t) {
  return cudaMalloc(pointer, bytes);
}
cudaError_t cudaFreeAsync(void* pointer, cudaStream_t) { return cudaFree(pointer); }

cudaError_t cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t stream) {
  Device& device = Device::get();
  const std::lock_guard lock(device.mutex);
  note(device, "memset", bytes, stream);
  if (!is_allowed(device, pointer, bytes, true)) {
    return device.fail(cudaErrorInvalidValue, "cudaMemset outside the registered ranges");
  }
  std::memset(pointer, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemset(void* pointer, int value, size_t bytes) {
  return cudaMemsetAsync(pointer, value, bytes, nullptr);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  Device& device = Device::get();
  const std::lock_guard lock(device.mutex);
  note(device, "memcpy", bytes, stream);
  const bool is_to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool is_from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if ((is_to_device && !is_allowed(device, to, bytes, true)) ||
      (is_from_device && !is_allowed(device, from, bytes, false))) {
    return device.fail(cudaErrorInvalidValue, "cudaMemcpy outside the registered ranges");
  }
  std::memmove(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}

cudaError_t cudaMemcpyToSymbolAsync(const void* symbol, const void* from, size_t bytes,
                                    size_t offset, cudaMemcpyKind, cudaStream_t stream) {
  Device& device = Device::get();
  const std::lock_guard lock(device.mutex);
  note(device, "memcpy to symbol", bytes, stream);
  const auto found = device.variables.find(symbol);
  if (found == device.variables.end()) {
    return device.fail(cudaErrorInvalidSymbol, "unknown symbol");
  }
  try {
    const emulator::Variable& variable = found->second;
    const emulator::Range* range = variable.image->variable(variable.name);
    if (range == nullptr || offset + bytes > range->bytes) {
      return device.fail(cudaErrorInvalidValue, "cudaMemcpyToSymbol out of range");
    }
    std::memcpy(range->begin + offset, from, bytes);
  } catch (const emulator::Fault& fault) {
    return device.fail(fault);
  }
  return cudaSuccess;
}
cudaError_t cudaMemcpyToSymbol(const void* symbol, const void* from, size_t bytes, size_t offset,
                               cudaMemcpyKind kind) {
  return cudaMemcpyToSymbolAsync(symbol, from, bytes, offset, kind, nullptr);
}

cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

}  // extern "C"
