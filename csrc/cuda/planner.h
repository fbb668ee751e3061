// Which CUDA kernel runs a problem, and why each other one does not. Free of torch and CUDA: the
// operators and perfconv.explain (through perfconv._C) ask the same functions.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/geometry.h"

namespace perfconv::cuda {

constexpr int64_t kMostTaps = 32;  // of tiled kernels: the bits of a row's tap mask, or pattern

// The forward kernels behind the algorithm names: gather_gemm is one path of several kernels,
// implicit_gemm is the first of its kernels that accepts the problem.
enum class ForwardKernel {
  kDirect,
  kGatherGemm,
  kWgmma,
  kTensorCore,
  kSimt,
  kDepthwise,
  kFewChannels
};

// What the choice depends on besides the geometry.
struct DeviceTraits {
  StorageType storage = StorageType::kFloat;
  bool allow_tf32 = false;
  bool is_aligned = true;  // input and weight start at a multiple of 16 bytes
  int compute_capability = 80;
};

// Why a product does not run on wgmma; empty if it does. The environment variable
// PERFCONV_CUDA_CAPABILITY (such as 80) asks for the kernels of older devices.
// depth: what is summed over for each tap, channels of a group; takes_tf32: whether float32 may
// run, rounded to tf32, which wgmma multiplies only where both factors have the depth contiguous.
std::string wgmma_refusal(const DeviceTraits& device, int64_t depth, bool takes_tf32 = false);

// An environment variable that is 0 or 1: whether it is not 0.
bool environment_flag(const char* name);

// Whether few tiles may be split over clusters of blocks (device/wgmma_cluster.cuh): not with the
// environment variable PERFCONV_CUDA_CLUSTER=0, to compare with.
bool may_take_clusters();

// Why a kernel does not take a problem; empty if it does.
std::string refusal(ForwardKernel kernel, const ConvGeometry& g, const DeviceTraits& device);

// The kernel of an algorithm (never kAuto or kDense): the first one of its list without a refusal.
ForwardKernel forward_kernel(const ConvGeometry& g, const DeviceTraits& device,
                             ConvAlgorithm algorithm);

// The algorithm that runs. The count of active pixels is on the device, so kAuto takes the dense
// convolution only by what the caller expects.
ConvAlgorithm choose_algorithm(const ConvGeometry& g, const DeviceTraits& device,
                               ConvAlgorithm wanted, std::optional<double> expected_density);

struct AlgorithmVerdict {
  ConvAlgorithm algorithm;
  bool is_chosen;
  std::string reason;
};

// One verdict for each algorithm, the chosen one first. The reason for implicit_gemm names the
// kernel that it runs, and why each one before it in its list does not.
std::vector<AlgorithmVerdict> explain_choice(const ConvGeometry& g, const DeviceTraits& device,
                                             ConvAlgorithm wanted,
                                             std::optional<double> expected_density);

}  // namespace perfconv::cuda
