// The break-even table and the choice it makes.
#include "cpu/planner.h"

#include <algorithm>
#include <sstream>

#include "cpu/kernels/isa.h"

namespace perfconv::cpu {
namespace {

bool is_tuned(StorageType storage) {
  // float16 is multiplied as float, here and on the dense path: the densities are those of float32.
  const bool is_float = storage == StorageType::kFloat || storage == StorageType::kHalf;
  if (is_float) return isa() != Isa::kPortable;
  return storage == StorageType::kBFloat16 && isa() >= Isa::kAvx512 && !has_amx_bf16();
}

// bfloat16 multiplied as float, at twice the rate of oneDNN's dot products where the processor has
// slow ones, and far above its emulation where it has none (KERNELS.md K-027).
bool beats_dense_bfloat16(StorageType storage) {
  return storage == StorageType::kBFloat16 && isa() == Isa::kAvx512;
}

// Break-even densities against oneDNN, by shape class: the highest density measured at which the
// kernels here were at least as fast (benchmarks/results, lists "standard" and "special").
struct ShapeClass {
  const char* name;
  double forward;
  double backward;
};

constexpr ShapeClass kDepthwise{"depthwise", 0.2, 0.2};
constexpr ShapeClass kFewInputs{"fewer than 16 input channels a group", 0.15, 0.1};
constexpr ShapeClass kFewOutputs{"fewer than 16 output channels a group", 0.6, 0.25};
constexpr ShapeClass kNarrow{"16 to 63 channels", 0.5, 0.4};
constexpr ShapeClass kPointwise{"1x1, 64 to 1024 channels, float32", 1.0, 0.95};  // K-023
constexpr ShapeClass kWide{"64 or more channels", 0.95, 0.95};

const ShapeClass& shape_class(const ConvGeometry& g) {
  if (g.is_depthwise()) return kDepthwise;
  if (g.group_in_channels() < 16) return kFewInputs;
  if (g.group_out_channels() < 16) return kFewOutputs;
  if (g.group_in_channels() < 64 || g.group_out_channels() < 64) return kNarrow;
  return kWide;
}

const ShapeClass& forward_class(const ConvGeometry& g, StorageType storage) {
  const int64_t fewest = std::min(g.group_in_channels(), g.group_out_channels());
  const int64_t most = std::max(g.group_in_channels(), g.group_out_channels());
  const bool is_measured = storage == StorageType::kFloat && isa() >= Isa::kAvx512;
  return is_measured && g.taps() == 1 && fewest >= 64 && most <= 1024 ? kPointwise : shape_class(g);
}

// Where the gradients here win at any density (KERNELS.md K-018, K-030): float32 from 128 channels
// on, bfloat16 with many, on maps large enough to pay for the packs.
bool always_wins_backward(const ConvGeometry& g, StorageType storage) {
  constexpr int64_t kLargeMap = 2048;
  const int64_t fewest = std::min(g.group_in_channels(), g.group_out_channels());
  return g.out_pixels() >= kLargeMap && fewest >= (storage == StorageType::kFloat ? 128 : 512) &&
         &shape_class(g) == &kWide;
}

std::string percent(double density) {
  std::ostringstream text;
  text.precision(3);
  text << density;
  return text.str();
}

double density_of(const ConvGeometry& g, int64_t active) {
  return g.out_pixels() == 0 ? 0.0
                             : static_cast<double>(active) / static_cast<double>(g.out_pixels());
}

}  // namespace

const char* algorithm_name(ConvAlgorithm algorithm) {
  switch (algorithm) {
    case ConvAlgorithm::kAuto:
      return "auto";
    case ConvAlgorithm::kDirect:
      return "direct";
    case ConvAlgorithm::kGatherGemm:
      return "gather_gemm";
    case ConvAlgorithm::kImplicitGemm:
      return "implicit_gemm";
    case ConvAlgorithm::kDense:
      return "dense";
  }
  return "";
}

double break_even_density(const ConvGeometry& g, StorageType storage, Pass pass) {
  if (!is_tuned(storage)) return 0.0;
  if (&shape_class(g) == &kWide && beats_dense_bfloat16(storage)) return 1.0;
  if (pass == Pass::kForward) return forward_class(g, storage).forward;
  return always_wins_backward(g, storage) ? 1.0 : shape_class(g).backward;
}

ConvAlgorithm choose_algorithm(const ConvGeometry& g, StorageType storage, int64_t active,
                               ConvAlgorithm wanted, Pass pass) {
  if (wanted != ConvAlgorithm::kAuto) return wanted;
  if (active == 0) return ConvAlgorithm::kImplicitGemm;
  return density_of(g, active) > break_even_density(g, storage, pass)
             ? ConvAlgorithm::kDense
             : ConvAlgorithm::kImplicitGemm;
}

std::vector<AlgorithmVerdict> explain_choice(const ConvGeometry& g, StorageType storage,
                                             int64_t active, ConvAlgorithm wanted) {
  const ConvAlgorithm chosen = choose_algorithm(g, storage, active, wanted);
  const double density = density_of(g, active);
  const double limit = break_even_density(g, storage, Pass::kForward);
  std::vector<AlgorithmVerdict> verdicts;
  for (const ConvAlgorithm algorithm : {ConvAlgorithm::kImplicitGemm, ConvAlgorithm::kDense,
                                        ConvAlgorithm::kGatherGemm, ConvAlgorithm::kDirect}) {
    const bool is_chosen = algorithm == chosen;
    std::string reason;
    if (wanted != ConvAlgorithm::kAuto) {
      reason = is_chosen ? "asked for by name" : "another algorithm was asked for by name";
    } else if (algorithm == ConvAlgorithm::kDirect) {
      reason = "the readable reference; only by name";
    } else if (algorithm == ConvAlgorithm::kGatherGemm) {
      reason = "the textbook path, slower than implicit_gemm; only by name";
    } else if (!is_tuned(storage)) {
      reason = std::string("no tuned kernel for this dtype on ") + isa_name() +
               ": dense unless the mask is empty";
    } else {
      reason = "density " + percent(density) + (density > limit ? " is above" : " is at or below") +
               " the break-even density " + percent(limit) + " of this shape class (" +
               forward_class(g, storage).name + ") on " + isa_name();
    }
    AlgorithmVerdict verdict{
        .algorithm = algorithm, .is_chosen = is_chosen, .reason = std::move(reason)};
    verdicts.insert(is_chosen ? verdicts.begin() : verdicts.end(), std::move(verdict));
  }
  return verdicts;
}

}  // namespace perfconv::cpu
