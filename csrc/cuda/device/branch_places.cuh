// Pixels of a multi-dilation convolution, whose input and output have the same grid, and the
// branches they chose.
#pragma once

#include <cstdint>

#include "cuda/kernels/launch.h"

namespace perfconv::cuda {

struct Place {
  int image;
  int y;
  int x;
};

// Of a flat position below 2^31; input and output have the same grid.
__device__ __forceinline__ Place place_of(const ConvGeometry& g, int64_t position) {
  const auto flat = static_cast<uint32_t>(position);
  const auto width = static_cast<uint32_t>(g.in_width);
  const auto height = static_cast<uint32_t>(g.in_height);
  const uint32_t row = flat / width;
  const uint32_t image = row / height;
  return {static_cast<int>(image), static_cast<int>(row - image * height),
          static_cast<int>(flat - row * width)};
}

// The flat position of (y, x) in the image of a place, or -1 outside.
__device__ __forceinline__ int64_t position_at(const ConvGeometry& g, const Place& place, int64_t y,
                                               int64_t x) {
  if (y < 0 || y >= g.in_height || x < 0 || x >= g.in_width) return -1;
  return (place.image * g.in_height + y) * g.in_width + x;
}

// The branch that a pixel chose, -1 for none and for what is no branch.
__device__ __forceinline__ int branch_of(const MultiDilationArgs& args, int64_t position) {
  const int32_t branch = args.choice[position];
  return branch >= 0 && branch < args.branches ? branch : -1;
}

}  // namespace perfconv::cuda
