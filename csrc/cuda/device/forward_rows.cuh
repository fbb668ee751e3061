// The rows of the forward pass: the active output pixels, in the order of their list.
#pragma once

#include "cuda/device/fill.cuh"
#include "cuda/device/gemm_args.cuh"
#include "cuda/device/grid.cuh"
#include "cuda/device/receptive_field.cuh"

namespace perfconv::cuda {

struct ForwardRows {
  static constexpr bool kMayAddSums = false;

  ConvGeometry geometry;
  MaskArgs mask;
  ActiveArgs active;
  bool is_pointwise = false;  // 1x1, stride 1, no padding: a pixel is its own receptive field

  __device__ int count() const { return *active.count; }

  __device__ GatheredRow row(const GemmArgs& args, int r) const {
    const ConvGeometry& g = geometry;
    const int32_t position = active.idx[r];
    if (is_pointwise) return {static_cast<uint32_t>(position), 1, 1, position};
    const Receptive field = receptive_field(g, position);
    uint32_t taps = 0;
    int tap = 0;
    for (int kh = 0; kh < g.kernel_height; ++kh) {
      const int64_t y = field.y + kh * g.dilation_h;
      const bool is_row_inside = y >= 0 && y < g.in_height;
      for (int kw = 0; kw < g.kernel_width; ++kw, ++tap) {
        const int64_t x = field.x + kw * g.dilation_w;
        if (is_row_inside && x >= 0 && x < g.in_width) taps |= 1u << tap;
      }
    }
    const int64_t base = (field.image * g.in_height + field.y) * g.in_width + field.x;
    return {static_cast<uint32_t>(base), 1, taps, position};
  }

  __device__ int64_t b_offset(int) const { return 0; }
  __device__ int bias_offset(int) const { return 0; }

  template <class T>
  __device__ void write_others(const GemmArgs& args) const {
    fill_inactive<T>(mask, args.epilogue, geometry.out_channels, args.is_vectorised, args.output);
  }
};

}  // namespace perfconv::cuda
