// Which output pixel an input pixel reaches through a tap: the geometry of dgrad.
#pragma once

#include <cstdint>

#include "core/geometry.h"
#include "cuda/kernels/launch.h"

namespace perfconv::cuda {

struct InputPixel {
  uint32_t image;
  uint32_t y;  // of the padded input, below 2^31
  uint32_t x;
};

__device__ __forceinline__ InputPixel padded_pixel(const ConvGeometry& g, uint32_t image,
                                                   uint32_t y, uint32_t x) {
  return {image, y + static_cast<uint32_t>(g.pad_top), x + static_cast<uint32_t>(g.pad_left)};
}

// Of a flat position. Index: int64_t, or uint32_t below 2^32, whose divisions are cheap.
template <class Index>
__device__ __forceinline__ InputPixel input_pixel(const ConvGeometry& g, Index position) {
  const auto width = static_cast<Index>(g.in_width);
  const auto height = static_cast<Index>(g.in_height);
  const Index row = position / width;
  const Index image = row / height;
  return padded_pixel(g, static_cast<uint32_t>(image), static_cast<uint32_t>(row - image * height),
                      static_cast<uint32_t>(position - row * width));
}

// The output coordinate along one axis whose tap reads the padded input coordinate, or -1.
__device__ __forceinline__ int output_coordinate(uint32_t padded, int64_t reach, int64_t stride,
                                                 int64_t length) {
  if (padded < reach) return -1;
  const uint32_t steps = padded - static_cast<uint32_t>(reach);
  const auto step = static_cast<uint32_t>(stride);
  const uint32_t coordinate = steps / step;
  const bool is_output = coordinate * step == steps && coordinate < length;
  return is_output ? static_cast<int>(coordinate) : -1;
}

// The output position, flat in its image, that reads an input pixel through tap (kh, kw), or -1.
__device__ __forceinline__ int output_position(const ConvGeometry& g, const InputPixel& pixel,
                                               int kh, int kw) {
  const int y = output_coordinate(pixel.y, kh * g.dilation_h, g.stride_h, g.out_height);
  if (y < 0) return -1;
  const int x = output_coordinate(pixel.x, kw * g.dilation_w, g.stride_w, g.out_width);
  return x < 0 ? -1 : y * static_cast<int>(g.out_width) + x;
}

// Where an image begins on the output grid, and its mask in the mask.
__device__ __forceinline__ int64_t output_begin(const ConvGeometry& g, const InputPixel& pixel) {
  return pixel.image * (g.out_height * g.out_width);
}
__device__ __forceinline__ const uint8_t* image_mask(const MaskArgs& mask,
                                                     const InputPixel& pixel) {
  return mask.mask + (mask.is_shared ? 0 : pixel.image * (mask.height * mask.width));
}

}  // namespace perfconv::cuda
