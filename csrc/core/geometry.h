// The plain structs that describe one perforated convolution, for host and device code alike.
// No torch type appears here, so kernels, planners and their tests can include it freely.
#pragma once

#include <cstdint>

namespace perfconv {

// What inactive output pixels hold; under kNone they are not written.
enum class Fill { kZero, kNearest, kPassthrough, kNone };

// Whether a pass over active pixels leaves the inactive ones alone; the nearest fill has a pass of
// its own afterwards.
constexpr bool leaves_inactive(Fill fill) { return fill == Fill::kNearest || fill == Fill::kNone; }

// Applied after bias and residual, at active pixels.
enum class Activation { kNone, kRelu, kRelu6, kSilu, kHardswish };

// The dataflows a caller can name; kAuto asks the planner.
enum class ConvAlgorithm { kAuto, kDirect, kGatherGemm, kImplicitGemm, kDense };

// How elements are stored; sums are float, or double for kDouble.
enum class StorageType { kFloat, kDouble, kBFloat16, kHalf };

// Bytes of an element, and of a sum of such elements.
constexpr int64_t element_bytes(StorageType storage) {
  switch (storage) {
    case StorageType::kFloat:
      return 4;
    case StorageType::kDouble:
      return 8;
    case StorageType::kBFloat16:
    case StorageType::kHalf:
      return 2;
  }
  return 0;
}
constexpr int64_t sum_bytes(StorageType storage) { return storage == StorageType::kDouble ? 8 : 4; }

enum class Pass { kForward, kBackward };

// Sizes of one 2-D convolution. All lengths in pixels or channels.
struct ConvGeometry {
  int64_t batch = 0;
  int64_t in_channels = 0;
  int64_t in_height = 0;
  int64_t in_width = 0;
  int64_t out_channels = 0;
  int64_t out_height = 0;
  int64_t out_width = 0;
  int64_t kernel_height = 1;
  int64_t kernel_width = 1;
  int64_t stride_h = 1;
  int64_t stride_w = 1;
  int64_t pad_top = 0;
  int64_t pad_left = 0;
  int64_t pad_bottom = 0;
  int64_t pad_right = 0;
  int64_t dilation_h = 1;
  int64_t dilation_w = 1;
  int64_t groups = 1;

  constexpr int64_t taps() const { return kernel_height * kernel_width; }
  constexpr int64_t in_pixels() const { return batch * in_height * in_width; }
  constexpr int64_t out_pixels() const { return batch * out_height * out_width; }
  constexpr int64_t group_in_channels() const { return in_channels / groups; }
  constexpr int64_t group_out_channels() const { return out_channels / groups; }
  constexpr bool is_depthwise() const { return groups == in_channels && groups == out_channels; }
  constexpr bool is_symmetric() const { return pad_top == pad_bottom && pad_left == pad_right; }
};

}  // namespace perfconv
