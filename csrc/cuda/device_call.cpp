// DeviceCall on a real device.
#include "cuda/device_call.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "cuda/planner.h"

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

constexpr int kLeastCapability = 80;  // asynchronous copies to shared memory

struct DeviceAttributes {
  int multiprocessors = 0;
  int compute_capability = 0;
};

cudaError_t query(int32_t device, DeviceAttributes& found) {
  int major = 0;
  int minor = 0;
  cudaError_t status = cudaSuccess;
  for (const auto& [attribute, value] :
       {std::pair{cudaDevAttrMultiProcessorCount, &found.multiprocessors},
        std::pair{cudaDevAttrComputeCapabilityMajor, &major},
        std::pair{cudaDevAttrComputeCapabilityMinor, &minor}}) {
    if (status == cudaSuccess) status = cudaDeviceGetAttribute(value, attribute, device);
  }
  found.compute_capability = 10 * major + minor;
  return status;
}

// They never change: each device is asked once, whichever thread comes first.
cudaError_t attributes(int32_t device, DeviceAttributes& found) {
  static std::mutex mutex;
  static std::map<int32_t, DeviceAttributes> known;
  const std::lock_guard lock(mutex);
  const auto place = known.find(device);
  if (place != known.end()) {
    found = place->second;
    return cudaSuccess;
  }
  const cudaError_t status = query(device, found);
  if (status == cudaSuccess) known.emplace(device, found);
  return status;
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
  // The guard speaks to torch's CUDA runtime; the one in this library is linked statically and has
  // a current device of its own.
  check(cudaSetDevice(device));
  DeviceAttributes found;
  check(attributes(device, found));
  context_.multiprocessors = found.multiprocessors;
  context_.compute_capability = found.compute_capability;
  context_.may_take_clusters = may_take_clusters();
  if (context_.compute_capability < kLeastCapability) {
    const std::string text = std::to_string(context_.compute_capability);
    throw std::runtime_error(std::string(op) +
                             ": needs a GPU of compute capability 8.0 or newer, got " +
                             text.substr(0, 1) + "." + text.substr(1) +
                             ". Move the tensors to the CPU, or to another GPU.");
  }
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
