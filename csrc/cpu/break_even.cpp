// The shipped break-even densities, and those of this machine where they were measured.
#include "cpu/break_even.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <limits>
#include <mutex>
#include <stdexcept>

#include "cpu/kernels/isa.h"
#include "cpu/lanes.h"

namespace perfconv::cpu {
namespace {

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

// Forward with AVX-512, against the dense path with its fill rather than dense alone (K-043,
// K-044, K-065 to K-067).
constexpr ShapeClass kDepthwise512{"depthwise", 1.0, 0.95};
constexpr ShapeClass kSmallGroups512{"groups of fewer than 16 channels", 1.0, 1.0};
constexpr ShapeClass kGrowingGroups512{"groups of fewer than 16 channels, more outputs than inputs",
                                       1.0, 0.25};
constexpr ShapeClass kFewBoth512{"fewer than 16 input, at most 8 output channels a group", 0.75,
                                 0.25};
constexpr ShapeClass kFewInputs512{"fewer than 16 input channels a group", 0.5, 0.25};
constexpr ShapeClass kFewInputsBFloat16{"fewer than 16 input channels a group, bfloat16", 0.75,
                                        0.1};

const ShapeClass& shape_class(const ConvGeometry& g) {
  if (g.is_depthwise()) return kDepthwise;
  if (g.group_in_channels() < 16) return kFewInputs;
  if (g.group_out_channels() < 16) return kFewOutputs;
  if (g.group_in_channels() < 64 || g.group_out_channels() < 64) return kNarrow;
  return kWide;
}

// Whether the groups are computed by vectors of channels (conv_grouped.cpp).
bool has_small_groups(const ConvGeometry& g) {
  constexpr int64_t kFloatLanes = 16;
  return output_lanes(g).fits(kFloatLanes) && g.group_out_channels() < kFloatLanes;
}

// Whether the taps of a kernel row are read as one (LineRows).
bool has_line_rows(const ConvGeometry& g) {
  return g.groups == 1 && g.dilation_w == 1 && g.group_in_channels() < 16;
}

const ShapeClass& tuned_class(const ConvGeometry& g, StorageType storage) {
  const int64_t fewest = std::min(g.group_in_channels(), g.group_out_channels());
  const int64_t most = std::max(g.group_in_channels(), g.group_out_channels());
  if (isa() >= Isa::kAvx512) {
    if (has_small_groups(g)) {
      if (g.is_depthwise()) return kDepthwise512;
      const bool grows = g.group_out_channels() > g.group_in_channels();
      return grows ? kGrowingGroups512 : kSmallGroups512;
    }
    if (has_line_rows(g) && g.group_out_channels() <= 8 && storage != StorageType::kBFloat16 &&
        storage != StorageType::kDouble) {
      return kFewBoth512;
    }
    if (has_line_rows(g)) return beats_dense_bfloat16(storage) ? kFewInputsBFloat16 : kFewInputs512;
  }
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

// ---- measured on this machine
// --------------------------------------------------------------------

enum MeasuredClass {
  kDepthwiseM,
  kSmallGroupsM,
  kFewInputsM,
  kFewOutputsM,
  kNarrowM,
  kPointwiseM,
  kWideM,
  kLargeM
};

constexpr std::array kMeasuredNames{
    "depthwise",
    "groups of fewer than 16 channels",
    "fewer than 16 input channels a group",
    "fewer than 16 output channels a group",
    "16 to 63 channels",
    "1x1, 64 or more channels",
    "64 or more channels",
    "128 or more channels, 2048 or more pixels",
};
constexpr size_t kEntriesOfClass = 4;  // {float32, bfloat16} x {forward, backward}
constexpr double kNotMeasured = std::numeric_limits<double>::quiet_NaN();

// Read in every call, from any thread; an entry at a time is enough.
struct MeasuredTable {
  std::array<std::atomic<double>, kMeasuredNames.size() * kEntriesOfClass> densities;
  std::mutex mutex;
  std::string source;

  MeasuredTable() {
    for (auto& density : densities) density = kNotMeasured;
  }
};

MeasuredTable& measured() {
  static MeasuredTable table;
  return table;
}

MeasuredClass measured_class(const ConvGeometry& g) {
  constexpr int64_t kLargeMap = 2048;
  const int64_t fewest = std::min(g.group_in_channels(), g.group_out_channels());
  if (g.is_depthwise()) return kDepthwiseM;
  if (has_small_groups(g)) return kSmallGroupsM;
  if (g.group_in_channels() < 16) return kFewInputsM;
  if (g.group_out_channels() < 16) return kFewOutputsM;
  if (fewest < 64) return kNarrowM;
  if (g.taps() == 1) return kPointwiseM;
  return fewest >= 128 && g.out_pixels() >= kLargeMap ? kLargeM : kWideM;
}

double measured_density(const ConvGeometry& g, StorageType storage, Pass pass) {
  const size_t entry = kEntriesOfClass * measured_class(g) +
                       (storage == StorageType::kBFloat16 ? 2 : 0) +
                       (pass == Pass::kForward ? 0 : 1);
  return measured().densities[entry].load(std::memory_order_relaxed);
}

}  // namespace

bool is_tuned(StorageType storage) {
  // float16 is multiplied as float, here and on the dense path: the densities are those of float32.
  const bool is_float = storage == StorageType::kFloat || storage == StorageType::kHalf;
  if (is_float) return isa() != Isa::kPortable;
  return storage == StorageType::kBFloat16 && isa() >= Isa::kAvx512 && !has_amx_bf16();
}

double break_even_density(const ConvGeometry& g, StorageType storage, Pass pass) {
  if (!is_tuned(storage)) return 0.0;
  const double density = measured_density(g, storage, pass);
  if (!std::isnan(density)) return density;
  if (&shape_class(g) == &kWide && beats_dense_bfloat16(storage)) return 1.0;
  if (pass == Pass::kForward) return tuned_class(g, storage).forward;
  return always_wins_backward(g, storage) ? 1.0 : tuned_class(g, storage).backward;
}

std::string break_even_reason(const ConvGeometry& g, StorageType storage) {
  if (std::isnan(measured_density(g, storage, Pass::kForward))) {
    return std::string("this shape class (") + tuned_class(g, storage).name + ") on " + isa_name() +
           ", shipped table";
  }
  const std::lock_guard lock(measured().mutex);
  return std::string("this shape class (") + kMeasuredNames[measured_class(g)] + "), " +
         measured().source;
}

std::vector<std::string> measured_classes() {
  return {kMeasuredNames.begin(), kMeasuredNames.end()};
}

void set_break_even(const std::vector<double>& densities, const std::string& source) {
  MeasuredTable& table = measured();
  if (!densities.empty() && densities.size() != table.densities.size()) {
    throw std::invalid_argument("set_break_even: a table has " +
                                std::to_string(table.densities.size()) + " densities, got " +
                                std::to_string(densities.size()) + ". Measure it again.");
  }
  for (const double density : densities) {
    if (!std::isnan(density) && !(density >= 0 && density <= 1)) {
      throw std::invalid_argument("set_break_even: densities must be in [0, 1] or NaN, got " +
                                  std::to_string(density) + ". Measure the table again.");
    }
  }
  const std::lock_guard lock(table.mutex);
  for (size_t entry = 0; entry < table.densities.size(); ++entry) {
    table.densities[entry] = densities.empty() ? kNotMeasured : densities[entry];
  }
  table.source = source;
}

}  // namespace perfconv::cpu
