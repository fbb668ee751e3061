// The rows of dgrad: the input pixels that active outputs read, sorted by their tap patterns.
//
// Through tap (kh, kw), input pixel q is read by the output (q + padding - k * dilation) / stride,
// if that is whole. In whole strides, (q + padding) / stride - k * dilation / stride, both rounded
// down, is the same output wherever the remainders agree, which the pattern of the pixel says: so
// the output's pixel is base - delta(tap).
#pragma once

#include "cuda/device/epilogue.cuh"
#include "cuda/device/gemm_args.cuh"
#include "cuda/device/grad_geometry.cuh"

namespace perfconv::cuda {

struct DgradRows {
  static constexpr bool kMayAddSums = true;

  ConvGeometry geometry;
  SortedPixels pixels;

  __device__ int count() const { return *pixels.count; }

  __device__ GatheredRow row(const GemmArgs&, int r) const {
    const ConvGeometry& g = geometry;
    const int32_t position = pixels.sorted[r];
    const InputPixel pixel = input_pixel(g, static_cast<uint32_t>(position));
    const uint32_t y = pixel.y / static_cast<uint32_t>(g.stride_h);
    const uint32_t x = pixel.x / static_cast<uint32_t>(g.stride_w);
    const auto width = static_cast<uint32_t>(g.out_width);
    const uint32_t base = (pixel.image * static_cast<uint32_t>(g.out_height) + y) * width + x;
    return {base, -1, pixels.patterns[position], position};
  }

  __device__ int64_t b_offset(int) const { return 0; }
  __device__ int bias_offset(int) const { return 0; }

  // Pixels that no active output reads get 0: they are the end of the sorted list. Sums stay.
  template <class T>
  __device__ void write_others(const GemmArgs& args) const {
    if (args.image_sums != nullptr) return;
    if (args.is_vectorised) {
      write_zeros<T, kRunSize<T>>(args);
    } else {
      write_zeros<T, 1>(args);
    }
  }

  template <class T, int kSize>
  __device__ void write_zeros(const GemmArgs& args) const {
    const int64_t channels = int64_t{args.columns} * args.groups;
    const int64_t warps = int64_t{gridDim.x} * blockDim.x / 32;
    const int64_t warp = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32;
    for (int64_t i = *pixels.count + warp; i < geometry.in_pixels(); i += warps) {
      const int64_t first = pixels.sorted[i] * channels;
      for (int64_t c = threadIdx.x % 32 * kSize; c < channels; c += 32 * kSize) {
        store_run(args.output, first + c, Run<T, kSize>{});
      }
    }
  }
};

}  // namespace perfconv::cuda
