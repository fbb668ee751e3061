// The choice that the break-even density makes.
#include "cpu/planner.h"

#include <sstream>

#include "cpu/break_even.h"
#include "cpu/kernels/isa.h"

namespace perfconv::cpu {
namespace {

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
               " the break-even density " + percent(limit) + " of " + break_even_reason(g, storage);
    }
    AlgorithmVerdict verdict{
        .algorithm = algorithm, .is_chosen = is_chosen, .reason = std::move(reason)};
    verdicts.insert(is_chosen ? verdicts.begin() : verdicts.end(), std::move(verdict));
  }
  return verdicts;
}

}  // namespace perfconv::cpu
