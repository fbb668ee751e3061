// DeviceCall over CPU tensors: every tensor of a call is staged in memory of its own, which is all
// that the kernels of this call may touch, and results are copied back when the call ends.
#include "cuda/device_call.h"

#include <torch/csrc/stable/ops.h>

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/planner.h"
#include "emulator_api.h"

namespace perfconv::cuda {
namespace {

// Unregistered memory before and after each staged tensor, so that an overrun cannot land in a
// neighbour. Never touched, so it costs no physical memory.
constexpr size_t kGap = 1 << 20;
constexpr size_t kAlignment = 256;  // as the device's allocator aligns
constexpr int kUnwritten = 0xFF;    // NaN, or -1

// Rights of emu_register_range; kernels must not read scratch memory before they have written it.
enum Rights { kReadWrite, kReadOnly, kUndefined };

class Staged {
 public:
  Staged(const void* host, size_t bytes, bool is_read_only)
      : host_(host), bytes_(bytes), is_read_only_(is_read_only) {
    memory_ = static_cast<char*>(std::aligned_alloc(kAlignment, 2 * kGap + padded()));
    if (memory_ == nullptr) throw std::bad_alloc();
    host != nullptr ? std::memcpy(device(), host, bytes) : std::memset(device(), kUnwritten, bytes);
    emu_register_range(device(), bytes, is_read_only ? kReadOnly : host ? kReadWrite : kUndefined);
  }
  Staged(Staged&& other) noexcept
      : host_(other.host_),
        bytes_(other.bytes_),
        is_read_only_(other.is_read_only_),
        memory_(std::exchange(other.memory_, nullptr)) {}
  Staged& operator=(Staged&&) = delete;
  ~Staged() {
    if (memory_ == nullptr) return;
    emu_unregister_range(device());
    std::free(memory_);
  }

  const void* host() const { return host_; }
  char* device() const { return memory_ + kGap; }

  void allow_writing() {
    if (!is_read_only_) return;
    is_read_only_ = false;
    emu_register_range(device(), bytes_, kReadWrite);
  }

  void copy_back() const {
    if (!is_read_only_ && host_ != nullptr) {
      std::memcpy(const_cast<void*>(host_), device(), bytes_);
    }
  }

 private:
  size_t padded() const { return (bytes_ + kAlignment - 1) / kAlignment * kAlignment; }

  const void* host_;  // null for scratch memory
  size_t bytes_;
  bool is_read_only_;
  char* memory_;
};

}  // namespace

struct DeviceCall::State {
  std::vector<Staged> staged;
  std::vector<Tensor> tensors;  // alive as long as their staged copies

  // The staged memory of a tensor; null for an empty one.
  char* stage(const Tensor& tensor, bool is_read_only) {
    const void* host = tensor.const_data_ptr();
    const auto bytes = static_cast<size_t>(tensor.numel()) * tensor.element_size();
    if (bytes == 0) return nullptr;
    for (Staged& known : staged) {
      if (known.host() != host) continue;
      if (!is_read_only) known.allow_writing();
      return known.device();
    }
    tensors.push_back(tensor);
    staged.emplace_back(host, bytes, is_read_only);
    return staged.back().device();
  }
};

DeviceCall::DeviceCall(const char* op, const Tensor& reference)
    : op_(op), reference_(reference), state_(new State) {
  emu_clear();
  int major = 0;
  int minor = 0;
  check(cudaDeviceGetAttribute(&context_.multiprocessors, cudaDevAttrMultiProcessorCount, 0));
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0));
  context_.compute_capability = 10 * major + minor;
  context_.may_take_clusters = may_take_clusters();
  context_.stream = reinterpret_cast<cudaStream_t>(uintptr_t{0x57EA4});  // recognisable in the log
}

DeviceCall::~DeviceCall() {
  for (const Staged& staged : state_->staged) staged.copy_back();
}

void* DeviceCall::scratch(int64_t bytes) {
  if (bytes == 0) return nullptr;
  state_->staged.emplace_back(nullptr, static_cast<size_t>(bytes), false);
  return state_->staged.back().device();
}

void DeviceCall::check(cudaError_t status) const {
  const std::string message = emu_last_error();
  if (status == cudaSuccess && message.empty()) return;
  throw std::runtime_error(std::string(op_) + ": CUDA error: " + cudaGetErrorString(status) +
                           (message.empty() ? "" : " (" + message + ")"));
}

const void* DeviceCall::read_bytes(const Tensor& tensor) { return state_->stage(tensor, true); }

void* DeviceCall::write_bytes(const Tensor& tensor) { return state_->stage(tensor, false); }

}  // namespace perfconv::cuda
