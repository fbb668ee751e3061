// The predicates of the CUDA kernels, and the choices made from them.
#include "cuda/planner.h"

#include <cstdlib>
#include <sstream>
#include <stdexcept>

namespace perfconv::cuda {
namespace {

constexpr int64_t kMostDepthwiseTaps = 64;
constexpr int64_t kMostPixels = int64_t{1} << 31;
constexpr int64_t kPackBytes = 16;

// Density above which the dense convolution is taken, when the caller says what to expect. Not
// measured on a GPU: from the cost model in KERNELS.md.
constexpr double kBreakEvenDensity = 0.5;

// Kernels of implicit_gemm, the preferred one first; the last takes everything.
constexpr ForwardKernel kImplicitKernels[] = {
    ForwardKernel::kWgmma,     ForwardKernel::kTensorCore,  ForwardKernel::kSimt,
    ForwardKernel::kDepthwise, ForwardKernel::kFewChannels, ForwardKernel::kDirect};
constexpr int64_t kWgmmaBytes = 128;  // of the depth of a step
constexpr int kWgmmaCapability = 90;  // code of sm_90a runs on no other

// The highest capability whose kernels may run, by the environment.
int most_capability() {
  static const int most = [] {
    const char* text = std::getenv("PERFCONV_CUDA_CAPABILITY");
    if (text == nullptr || *text == '\0') return kWgmmaCapability;
    char* end = nullptr;
    const long value = std::strtol(text, &end, 10);
    if (*end != '\0' || value < 80 || value > 1000) {
      throw std::invalid_argument(
          "PERFCONV_CUDA_CAPABILITY must be a compute capability such as 80 or 90, got " +
          std::string(text) + ".");
    }
    return static_cast<int>(value);
  }();
  return most;
}

// What both tiled kernels need: gathered rows of whole 16-byte packs.
std::string tile_refusal(const ConvGeometry& g, const DeviceTraits& device) {
  if (g.taps() > kMostTaps) return "more than 32 taps";
  if (g.group_in_channels() * element_bytes(device.storage) % kPackBytes != 0) {
    return "input channels of a group are no multiple of 16 bytes";
  }
  if (!device.is_aligned) return "input or weight does not start at a multiple of 16 bytes";
  return g.in_pixels() < kMostPixels ? "" : "2^31 or more input pixels";
}

const char* kernel_name(ForwardKernel kernel) {
  switch (kernel) {
    case ForwardKernel::kDirect:
      return "direct";
    case ForwardKernel::kGatherGemm:
      return "gather, GEMM, scatter";
    case ForwardKernel::kWgmma:
      return "wgmma";
    case ForwardKernel::kTensorCore:
      return "tensor cores";
    case ForwardKernel::kSimt:
      return "float32 tiles";
    case ForwardKernel::kDepthwise:
      return "depthwise";
    case ForwardKernel::kFewChannels:
      return "few channels";
  }
  return "";
}

std::string implicit_reason(const ConvGeometry& g, const DeviceTraits& device) {
  std::ostringstream text;
  const ForwardKernel chosen = forward_kernel(g, device, ConvAlgorithm::kImplicitGemm);
  text << "kernel: " << kernel_name(chosen);
  const char* separator = "; ";
  for (const ForwardKernel kernel : kImplicitKernels) {
    if (kernel == chosen) break;
    text << separator << "not " << kernel_name(kernel) << " (" << refusal(kernel, g, device) << ")";
    separator = ", ";
  }
  return text.str();
}

std::string density_reason(std::optional<double> expected_density) {
  if (!expected_density) return "no expected_density: the count of active pixels is not read";
  std::ostringstream text;
  text << "expected density " << *expected_density
       << (*expected_density > kBreakEvenDensity ? " is above" : " is at or below")
       << " the break-even density " << kBreakEvenDensity << " (modelled)";
  return text.str();
}

}  // namespace

std::string wgmma_refusal(const DeviceTraits& device, int64_t depth, bool takes_tf32) {
  if (device.compute_capability != kWgmmaCapability) return "no GPU of compute capability 9.0";
  if (most_capability() < kWgmmaCapability) return "PERFCONV_CUDA_CAPABILITY is below 90";
  const bool is_half =
      device.storage == StorageType::kBFloat16 || device.storage == StorageType::kHalf;
  if (!is_half && !(takes_tf32 && device.storage == StorageType::kFloat)) {
    return "neither bfloat16 nor float16";
  }
  if (!is_half && !device.allow_tf32) return "float32 without torch's permission to use tf32";
  const int64_t multiple = kWgmmaBytes / element_bytes(device.storage);
  if (depth % multiple == 0) return "";
  return "the summed channels of a group are no multiple of " + std::to_string(multiple);
}

bool environment_flag(const char* name) {
  const char* text = std::getenv(name);
  const std::string value = text == nullptr || *text == '\0' ? "1" : text;
  if (value != "0" && value != "1") {
    throw std::invalid_argument(std::string(name) + " must be 0 or 1, got " + value + ".");
  }
  return value == "1";
}

bool may_take_clusters() {
  static const bool may = environment_flag("PERFCONV_CUDA_CLUSTER");
  return may;
}

std::string refusal(ForwardKernel kernel, const ConvGeometry& g, const DeviceTraits& device) {
  switch (kernel) {
    case ForwardKernel::kDirect:
    case ForwardKernel::kGatherGemm:
      return "";
    case ForwardKernel::kWgmma:
      if (const auto reason = wgmma_refusal(device, g.group_in_channels(), true); !reason.empty()) {
        return reason;
      }
      return tile_refusal(g, device);
    case ForwardKernel::kTensorCore:
      if (device.storage == StorageType::kDouble) return "float64";
      if (device.storage == StorageType::kFloat && !device.allow_tf32) {
        return "float32 without torch's permission to use tf32";
      }
      return tile_refusal(g, device);
    case ForwardKernel::kSimt:
      return device.storage == StorageType::kFloat ? tile_refusal(g, device) : "not float32";
    case ForwardKernel::kDepthwise:
      if (!g.is_depthwise()) return "groups are not single channels";
      if (device.storage == StorageType::kDouble) return "float64";
      if (g.in_channels * element_bytes(device.storage) % kPackBytes != 0) {
        return "channels are no multiple of 16 bytes";
      }
      if (!device.is_aligned) return "input or weight does not start at a multiple of 16 bytes";
      return g.taps() <= kMostDepthwiseTaps ? "" : "more than 64 taps";
    case ForwardKernel::kFewChannels:
      return device.storage == StorageType::kDouble ? "float64" : "";
  }
  return "";
}

ForwardKernel forward_kernel(const ConvGeometry& g, const DeviceTraits& device,
                             ConvAlgorithm algorithm) {
  if (algorithm == ConvAlgorithm::kDirect) return ForwardKernel::kDirect;
  if (algorithm == ConvAlgorithm::kGatherGemm) return ForwardKernel::kGatherGemm;
  for (const ForwardKernel kernel : kImplicitKernels) {
    if (refusal(kernel, g, device).empty()) return kernel;
  }
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

std::vector<AlgorithmVerdict> explain_choice(const ConvGeometry& g, const DeviceTraits& device,
                                             ConvAlgorithm wanted,
                                             std::optional<double> expected_density) {
  const ConvAlgorithm chosen = choose_algorithm(g, device, wanted, expected_density);
  std::vector<AlgorithmVerdict> verdicts;
  for (const ConvAlgorithm algorithm : {ConvAlgorithm::kImplicitGemm, ConvAlgorithm::kDense,
                                        ConvAlgorithm::kGatherGemm, ConvAlgorithm::kDirect}) {
    const bool is_chosen = algorithm == chosen;
    std::string reason;
    if (wanted != ConvAlgorithm::kAuto) {
      reason = is_chosen ? "asked for by name" : "another algorithm was asked for by name";
    } else if (algorithm == ConvAlgorithm::kDirect) {
      reason = is_chosen ? "float64" : "the readable reference; only by name";
    } else if (algorithm == ConvAlgorithm::kGatherGemm) {
      reason = "the textbook path, slower than implicit_gemm; only by name";
    } else {
      reason = density_reason(expected_density);
    }
    if (algorithm == ConvAlgorithm::kImplicitGemm) reason += "; " + implicit_reason(g, device);
    AlgorithmVerdict verdict{
        .algorithm = algorithm, .is_chosen = is_chosen, .reason = std::move(reason)};
    verdicts.insert(is_chosen ? verdicts.begin() : verdicts.end(), std::move(verdict));
  }
  return verdicts;
}

}  // namespace perfconv::cuda
