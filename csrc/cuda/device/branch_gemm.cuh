// Multi-dilation convolution as an implicit GEMM (host side): what its kernels are given.
#pragma once

#include "cuda/device/branch_rows.cuh"
#include "cuda/device/gemm_choice.cuh"

namespace perfconv::cuda {

constexpr auto kBranchLayout = BLayout::kDepthContiguous;

inline GemmArgs branch_gemm_args(const MultiDilationArgs& args, float* partials) {
  const ConvGeometry& g = args.geometry;
  GemmArgs gemm;
  gemm.a = args.input;
  gemm.a_pitch = g.in_channels;
  gemm.b = args.weight;
  gemm.b_packed = args.packed_weight;
  gemm.depth = static_cast<int>(g.in_channels);
  gemm.columns = static_cast<int>(g.out_channels);
  gemm.taps = static_cast<int>(g.taps());
  gemm.b_depth = 1;
  gemm.b_tap = gemm.depth;
  gemm.b_column = g.taps() * gemm.depth;
  gemm.b_group = gemm.b_column * gemm.columns;  // of a branch: the only group is 0
  const auto side = static_cast<int>(g.kernel_height);
  for (int tap = 0; tap < gemm.taps; ++tap) {
    gemm.delta[tap] =
        (tap / side - side / 2) * static_cast<int32_t>(g.in_width) + tap % side - side / 2;
  }
  gemm.epilogue = args.epilogue;
  gemm.output = args.output;
  gemm.is_vectorised = is_vectorised(args.storage, gemm);
  gemm.partials = partials;
  return gemm;
}

// Rows at most: every pixel, and a ragged tile a branch.
inline int64_t most_branch_rows(const MultiDilationArgs& args, int unit) {
  return args.geometry.out_pixels() + int64_t{args.branches} * (unit - 1);
}

template <class Tile>
BranchRows branch_rows(const MultiDilationArgs& args, const SortedBranches& pixels) {
  const bool is_shared = args.weight_pitch == 0 && args.bias_pitch == 0;
  return {args, pixels, is_shared ? 1 : Tile::kRows};
}

}  // namespace perfconv::cuda
