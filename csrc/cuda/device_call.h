// One operator call on a device: the only way host code hands memory to kernels.
//
// Guards the device of a tensor, takes torch's current stream, and says which tensors the kernels
// read and write. The emulator of the tests implements the same class over CPU tensors, and holds
// the kernels to exactly that memory: results are in the tensors when the DeviceCall has ended.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <memory>

#include "core/checks.h"
#include "cuda/kernels/launch.h"

namespace perfconv::cuda {

class DeviceCall {
 public:
  DeviceCall(const char* op, const Tensor& reference);
  ~DeviceCall();
  DeviceCall(const DeviceCall&) = delete;
  DeviceCall& operator=(const DeviceCall&) = delete;

  const LaunchContext& context() const { return context_; }

  // Device pointers; null for a tensor that is not there. Read what was written by an earlier
  // kernel of the same call with the pointer of write().
  template <class T = void>
  const T* read(const Tensor& tensor) {
    return static_cast<const T*>(read_bytes(tensor));
  }
  template <class T = void>
  const T* read(const OptionalTensor& tensor) {
    return tensor ? read<T>(*tensor) : nullptr;
  }
  template <class T = void>
  T* write(const Tensor& tensor) {
    return static_cast<T*>(write_bytes(tensor));
  }

  // Scratch memory on the device that lives as long as this call; null for no bytes.
  void* scratch(int64_t bytes);

  // Throws std::runtime_error with the name of the operator.
  void check(cudaError_t status) const;

 private:
  const void* read_bytes(const Tensor& tensor);
  void* write_bytes(const Tensor& tensor);

  struct State;
  const char* op_;
  Tensor reference_;
  LaunchContext context_;
  std::unique_ptr<State> state_;
};

}  // namespace perfconv::cuda
