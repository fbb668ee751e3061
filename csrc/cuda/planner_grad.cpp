// The predicates of the gradients' kernels, and the choice made from them.
#include "cuda/planner_grad.h"

namespace perfconv::cuda {
namespace {

constexpr int64_t kMost = int64_t{1} << 31;
constexpr int64_t kPackBytes = 16;
constexpr int64_t kMostGridRows = 65535;  // blocks along y and z

// Kernels of implicit_gemm, the preferred one first; the last takes everything.
constexpr GradKernel kImplicitKernels[] = {GradKernel::kWgmma, GradKernel::kTensorCore,
                                           GradKernel::kSimt, GradKernel::kDepthwise,
                                           GradKernel::kDirect};

std::string tile_refusal(Gradient which, const ConvGeometry& g, const DeviceTraits& device) {
  const int64_t bytes = element_bytes(device.storage);
  if (g.group_in_channels() * bytes % kPackBytes != 0 ||
      g.group_out_channels() * bytes % kPackBytes != 0) {
    return "channels of a group are no multiple of 16 bytes";
  }
  if (!device.is_aligned) return "an operand does not start at a multiple of 16 bytes";
  if (which == Gradient::kInput && g.taps() > kMostTaps) return "more than 32 taps";
  if (g.in_pixels() >= kMost) return "2^31 or more input pixels";
  const bool is_small = g.out_channels * g.group_in_channels() * g.taps() < kMost;
  return is_small ? "" : "2^31 or more elements of the weight";
}

}  // namespace

std::string refusal(GradKernel kernel, Gradient which, const ConvGeometry& g,
                    const DeviceTraits& device) {
  switch (kernel) {
    case GradKernel::kDirect:
    case GradKernel::kGatherGemm:
      return "";
    case GradKernel::kWgmma:
      if (const auto reason = wgmma_refusal(device, g.group_out_channels()); !reason.empty()) {
        return reason;
      }
      if (which == Gradient::kWeight &&
          (g.group_out_channels() < 128 || g.group_in_channels() % 64 != 0)) {
        return "fewer than 128 output channels of a group, or input channels no multiple of 64";
      }
      return tile_refusal(which, g, device);
    case GradKernel::kTensorCore:
      if (device.storage == StorageType::kDouble) return "float64";
      if (device.storage == StorageType::kFloat && !device.allow_tf32) {
        return "float32 without torch's permission to use tf32";
      }
      return tile_refusal(which, g, device);
    case GradKernel::kSimt:
      return device.storage == StorageType::kFloat ? tile_refusal(which, g, device) : "not float32";
    case GradKernel::kDepthwise:
      if (device.storage == StorageType::kDouble) return "float64";
      if (!g.is_depthwise()) return "not as many groups as channels";
      if (g.taps() > kMostGridRows) return "more than 65535 taps";
      return g.in_pixels() < kMost ? "" : "2^31 or more input pixels";
  }
  return "";
}

GradKernel grad_kernel(Gradient which, const ConvGeometry& g, const DeviceTraits& device,
                       ConvAlgorithm algorithm) {
  if (algorithm == ConvAlgorithm::kDirect) return GradKernel::kDirect;
  if (algorithm == ConvAlgorithm::kGatherGemm) return GradKernel::kGatherGemm;
  for (const GradKernel kernel : kImplicitKernels) {
    if (refusal(kernel, which, g, device).empty()) return kernel;
  }
  return GradKernel::kDirect;
}

}  // namespace perfconv::cuda
