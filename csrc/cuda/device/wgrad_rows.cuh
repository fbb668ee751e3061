// The weight gradient over the active pixels: its rows, and what its kernels are given.
#pragma once

#include "cuda/device/receptive_field.cuh"
#include "cuda/device/wgrad_gemm.cuh"

namespace perfconv::cuda {

struct ActiveRows {
  ConvGeometry geometry;
  ActiveArgs active;

  __device__ RowRange range(int) const { return {0, *active.count}; }

  __device__ PixelPair pixels(int r, int, int kh, int kw) const {
    const ConvGeometry& g = geometry;
    const int32_t position = active.idx[r];
    const Receptive field = receptive_field(g, position);
    const int64_t y = field.y + kh * g.dilation_h;
    const int64_t x = field.x + kw * g.dilation_w;
    if (y < 0 || y >= g.in_height || x < 0 || x >= g.in_width) return {-1, -1};
    return {position, static_cast<int32_t>((field.image * g.in_height + y) * g.in_width + x)};
  }
};

inline WgradArgs wgrad_args(const GradArgs& args) {
  const ConvGeometry& g = args.geometry;
  WgradArgs wgrad;
  wgrad.grad_output = args.grad_output;
  wgrad.input = args.operand;
  wgrad.partials = static_cast<float*>(args.workspace);
  wgrad.outputs = static_cast<int>(g.group_out_channels());
  wgrad.inputs = static_cast<int>(g.group_in_channels());
  wgrad.groups = static_cast<int>(g.groups);
  wgrad.kernel_height = static_cast<int>(g.kernel_height);
  wgrad.kernel_width = static_cast<int>(g.kernel_width);
  return wgrad;
}

}  // namespace perfconv::cuda
