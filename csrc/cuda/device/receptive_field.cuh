// Where an output pixel reads its input, and which output pixels an input pixel reaches.
#pragma once

#include <cstdint>

#include "core/geometry.h"

namespace perfconv::cuda {

struct Receptive {
  int64_t image;
  int64_t y;  // input coordinates of the first tap; may lie outside
  int64_t x;
};

__device__ __forceinline__ Receptive receptive_field(const ConvGeometry& g, int64_t position) {
  const auto flat = static_cast<uint32_t>(position);  // below 2^31
  const auto width = static_cast<uint32_t>(g.out_width);
  const auto height = static_cast<uint32_t>(g.out_height);
  const uint32_t row = flat / width;
  const uint32_t image = row / height;
  return {image, int64_t{row - image * height} * g.stride_h - g.pad_top,
          int64_t{flat - row * width} * g.stride_w - g.pad_left};
}

}  // namespace perfconv::cuda
