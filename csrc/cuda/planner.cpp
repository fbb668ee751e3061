// The predicates of the CUDA kernels, and the choices made from them.
#include "cuda/planner.h"

namespace perfconv::cuda {
namespace {

// Density above which the dense convolution is taken, when the caller says what to expect. Not yet
// measured on a GPU: from the cost model in KERNELS.md.
constexpr double kBreakEvenDensity = 0.5;

}  // namespace

std::string refusal(ForwardKernel kernel, const ConvGeometry& g, const DeviceTraits& device) {
  (void)g;
  (void)device;
  return kernel == ForwardKernel::kDirect ? "" : "not built";
}

ForwardKernel forward_kernel(const ConvGeometry& g, const DeviceTraits& device,
                             ConvAlgorithm algorithm) {
  (void)g;
  (void)device;
  (void)algorithm;
  return ForwardKernel::kDirect;
}

ConvAlgorithm choose_algorithm(const ConvGeometry& g, const DeviceTraits& device,
                               ConvAlgorithm wanted, std::optional<double> expected_density) {
  if (wanted != ConvAlgorithm::kAuto) return wanted;
  if (device.storage == StorageType::kDouble) return ConvAlgorithm::kDirect;
  (void)g;
  return expected_density && *expected_density > kBreakEvenDensity ? ConvAlgorithm::kDense
                                                                   : ConvAlgorithm::kImplicitGemm;
}

}  // namespace perfconv::cuda
