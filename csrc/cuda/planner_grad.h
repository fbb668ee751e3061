// Which CUDA kernel computes a gradient, and why each other one does not.
#pragma once

#include "cuda/planner.h"

namespace perfconv::cuda {

enum class Gradient { kInput, kWeight };

// implicit_gemm is the first of its kernels that accepts the problem.
enum class GradKernel { kDirect, kGatherGemm, kWgmma, kTensorCore, kSimt, kDepthwise };

// Why a kernel does not take a problem; empty if it does. is_aligned in the traits is about the
// gradient of the output and the other operand.
std::string refusal(GradKernel kernel, Gradient which, const ConvGeometry& g,
                    const DeviceTraits& device);

// The kernel of an algorithm (never kAuto or kDense).
GradKernel grad_kernel(Gradient which, const ConvGeometry& g, const DeviceTraits& device,
                       ConvAlgorithm algorithm);

}  // namespace perfconv::cuda
