// DeviceCall on a real device.
#include "cuda/device_call.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include <string>
#include <vector>

// Weak: this symbol of libtorch_cuda is the only one needed, and this library must also load beside
// a torch without CUDA.
extern "C" AOTI_TORCH_EXPORT __attribute__((weak)) AOTITorchError
aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);

namespace perfconv::cuda {
namespace {

cudaStream_t current_stream(const char* op, int32_t device) {
  if (aoti_torch_get_current_cuda_stream == nullptr) {
    throw std::runtime_error(std::string(op) +
                             ": the installed torch has no CUDA support. Install one that has.");
  }
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

}  // namespace

struct DeviceCall::State {
  explicit State(int32_t device) : guard(device) {}
  torch::stable::accelerator::DeviceGuard guard;
  std::vector<Tensor> scratch;
};

DeviceCall::DeviceCall(const char* op, const Tensor& reference)
    : op_(op), reference_(reference), state_(new State(reference.get_device())) {
  const int32_t device = reference.get_device();
  context_.stream = current_stream(op, device);
  int major = 0;
  int minor = 0;
  check(cudaDeviceGetAttribute(&context_.multiprocessors, cudaDevAttrMultiProcessorCount, device));
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  context_.compute_capability = 10 * major + minor;
}

DeviceCall::~DeviceCall() = default;

// Torch's allocator reuses memory in the order of the stream: scratch needs no synchronisation.
void* DeviceCall::scratch(int64_t bytes) {
  if (bytes == 0) return nullptr;
  state_->scratch.push_back(torch::stable::new_empty(reference_, {bytes}, ScalarType::Byte));
  return state_->scratch.back().mutable_data_ptr();
}

void DeviceCall::check(cudaError_t status) const {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string(op_) + ": CUDA error: " + cudaGetErrorString(status));
}

const void* DeviceCall::read_bytes(const Tensor& tensor) { return tensor.const_data_ptr(); }

void* DeviceCall::write_bytes(const Tensor& tensor) { return tensor.mutable_data_ptr(); }

}  // namespace perfconv::cuda
