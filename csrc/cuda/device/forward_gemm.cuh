// The forward pass as an implicit GEMM (host side): what its kernels are given.
#pragma once

#include "cuda/device/forward_rows.cuh"
#include "cuda/device/gemm_choice.cuh"

namespace perfconv::cuda {

constexpr auto kForwardLayout = BLayout::kDepthContiguous;

inline GemmArgs forward_gemm_args(const ForwardArgs& args) {
  const ConvGeometry& g = args.geometry;
  GemmArgs gemm;
  gemm.a = args.input;
  gemm.a_pitch = g.in_channels;
  gemm.b = args.weight;
  gemm.b_packed = args.packed_weight;
  gemm.depth = static_cast<int>(g.group_in_channels());
  gemm.columns = static_cast<int>(g.group_out_channels());
  gemm.groups = static_cast<int>(g.groups);
  gemm.taps = static_cast<int>(g.taps());
  gemm.b_depth = 1;
  gemm.b_tap = gemm.depth;
  gemm.b_column = g.taps() * gemm.depth;
  gemm.b_group = gemm.b_column * gemm.columns;
  for (int tap = 0; tap < gemm.taps; ++tap) {
    const int64_t row = tap / g.kernel_width * g.dilation_h;
    const int64_t column = tap % g.kernel_width * g.dilation_w;
    gemm.delta[tap] = static_cast<int32_t>(row * g.in_width + column);
  }
  gemm.epilogue = args.epilogue;
  gemm.output = args.output;
  gemm.is_vectorised = is_vectorised(args.storage, gemm);
  gemm.partials = static_cast<float*>(args.workspace);
  return gemm;
}

inline bool is_pointwise(const ConvGeometry& g) {
  return g.taps() == 1 && g.stride_h == 1 && g.stride_w == 1 && g.pad_top == 0 && g.pad_left == 0;
}

inline ForwardRows forward_rows(const ForwardArgs& args) {
  return {args.geometry, args.mask, args.active, is_pointwise(args.geometry)};
}

}  // namespace perfconv::cuda
