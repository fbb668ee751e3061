// The weight gradient of multi-dilation convolution: its rows, and what its kernels are given.
//
// Branches that share a weight are one segment of rows, each with a dilation of its own; where each
// has a weight, each is a segment.
#pragma once

#include "cuda/device/wgrad_choice.cuh"

namespace perfconv::cuda {

struct BranchPixels {
  MultiDilationArgs args;
  SortedBranches sorted;

  __device__ RowRange range(int segment) const {
    if (args.weight_pitch == 0) return {0, sorted.starts[args.branches]};
    return {sorted.starts[segment], sorted.starts[segment + 1]};
  }

  __device__ PixelPair pixels(int r, int, int kh, int kw) const {
    const ConvGeometry& g = args.geometry;
    const int32_t position = sorted.sorted[r];
    const auto half = static_cast<int>(g.kernel_height) / 2;
    const auto width = static_cast<uint32_t>(g.in_width);
    const auto height = static_cast<uint32_t>(g.in_height);
    const uint32_t line = static_cast<uint32_t>(position) / width;
    const int64_t dilation = args.dilations[args.choice[position]];
    const int64_t rows = (kh - half) * dilation;
    const int64_t columns = (kw - half) * dilation;
    const int64_t y = line % height + rows;
    const int64_t x = static_cast<uint32_t>(position) - line * width + columns;
    if (y < 0 || y >= g.in_height || x < 0 || x >= g.in_width) return {-1, -1};
    return {position, static_cast<int32_t>(position + rows * g.in_width + columns)};
  }
};

inline WgradArgs branch_wgrad_args(const MultiDilationArgs& args, void* workspace) {
  const ConvGeometry& g = args.geometry;
  WgradArgs wgrad;
  wgrad.grad_output = args.grad_output;
  wgrad.input = args.input;
  wgrad.partials = static_cast<float*>(workspace);
  wgrad.outputs = static_cast<int>(g.out_channels);
  wgrad.inputs = static_cast<int>(g.in_channels);
  wgrad.kernel_height = static_cast<int>(g.kernel_height);
  wgrad.kernel_width = static_cast<int>(g.kernel_width);
  wgrad.segments = args.weight_pitch == 0 ? 1 : args.branches;
  return wgrad;
}

template <class Tile>
int branch_slices(const MultiDilationArgs& args, const WgradArgs& wgrad) {
  return slice_count(wgrad_tiles<Tile>(wgrad) * wgrad.segments,
                     args.geometry.out_pixels() / wgrad.segments);
}

}  // namespace perfconv::cuda
