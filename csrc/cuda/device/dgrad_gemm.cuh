// The input gradient as an implicit GEMM (host side): what its kernels are given.
#pragma once

#include "cuda/device/dgrad_rows.cuh"
#include "cuda/device/gemm_choice.cuh"

namespace perfconv::cuda {

constexpr auto kDgradLayout = BLayout::kColumnContiguous;

inline GemmArgs dgrad_gemm_args(const GradArgs& args) {
  const ConvGeometry& g = args.geometry;
  GemmArgs gemm;
  gemm.a = args.grad_output;
  gemm.a_pitch = g.out_channels;
  gemm.b = args.operand;
  gemm.depth = static_cast<int>(g.group_out_channels());
  gemm.columns = static_cast<int>(g.group_in_channels());
  gemm.groups = static_cast<int>(g.groups);
  gemm.taps = static_cast<int>(g.taps());
  gemm.b_column = 1;
  gemm.b_tap = gemm.columns;
  gemm.b_depth = g.taps() * gemm.columns;
  gemm.b_group = gemm.b_depth * gemm.depth;
  for (int tap = 0; tap < gemm.taps; ++tap) {
    const int64_t row = tap / g.kernel_width * g.dilation_h / g.stride_h;
    const int64_t column = tap % g.kernel_width * g.dilation_w / g.stride_w;
    gemm.delta[tap] = static_cast<int32_t>(row * g.out_width + column);
  }
  gemm.output = args.result;
  gemm.image_sums = args.sums;
  if (args.sums != nullptr && args.storage == StorageType::kFloat) {
    gemm.output = args.sums;
    gemm.epilogue.residual = args.sums;
  }
  gemm.is_vectorised = is_vectorised(args.storage, gemm);
  gemm.partials = static_cast<float*>(args.workspace);
  return gemm;
}

}  // namespace perfconv::cuda
