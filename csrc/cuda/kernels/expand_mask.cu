// Mask expansion: expanded[q] = any of mask[p] over the output pixels p that read input pixel q.
//
// One thread an input pixel, in a grid-stride loop; neighbouring threads take neighbouring columns.
// Only taps that reach the output grid are visited, so a kernel far wider than the image costs no
// more than the image.
#include "cuda/device/grad_geometry.cuh"
#include "cuda/device/grid.cuh"
#include "cuda/kernels/launch.h"

namespace perfconv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerMultiprocessor = 8;
constexpr int kLeastBlocks = 4;  // resident: 64 registers a thread, no spills

struct TapRange {
  int64_t begin;
  int64_t end;
};

// The taps that may read a padded input coordinate: 0 <= padded - tap * dilation <= last, where
// last is the first tap's coordinate of the last output.
__device__ __forceinline__ TapRange taps_that_reach(int64_t padded, int64_t dilation,
                                                    int64_t kernel, int64_t last) {
  const int64_t begin = padded > last ? (padded - last + dilation - 1) / dilation : 0;
  return {begin, min(kernel, padded / dilation + 1)};
}

__device__ bool is_read(const MaskArgs& mask, const ConvGeometry& g, const InputPixel& pixel) {
  const uint8_t* image = image_mask(mask, pixel);
  const TapRange rows =
      taps_that_reach(pixel.y, g.dilation_h, g.kernel_height, (g.out_height - 1) * g.stride_h);
  const TapRange columns =
      taps_that_reach(pixel.x, g.dilation_w, g.kernel_width, (g.out_width - 1) * g.stride_w);
  for (int64_t kh = rows.begin; kh < rows.end; ++kh) {
    const int64_t out_y = output_coordinate(pixel.y, kh * g.dilation_h, g.stride_h, g.out_height);
    if (out_y < 0) continue;
    for (int64_t kw = columns.begin; kw < columns.end; ++kw) {
      const int64_t out_x = output_coordinate(pixel.x, kw * g.dilation_w, g.stride_w, g.out_width);
      if (out_x < 0) continue;
      if (image[out_y * g.out_width + out_x] != 0) return true;
    }
  }
  return false;
}

__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    expand_kernel(const __grid_constant__ MaskArgs mask, const __grid_constant__ ConvGeometry g,
                  uint8_t* __restrict__ expanded) {
  const int64_t threads = int64_t{gridDim.x} * kThreads;
  const int64_t pixels = g.in_pixels();
  for (int64_t q = int64_t{blockIdx.x} * kThreads + threadIdx.x; q < pixels; q += threads) {
    expanded[q] = is_read(mask, g, input_pixel(g, q)) ? 1 : 0;
  }
}

}  // namespace

cudaError_t launch_expand_mask(const LaunchContext& context, const MaskArgs& mask,
                               const ConvGeometry& geometry, uint8_t* expanded) {
  const int64_t pixels = geometry.in_pixels();
  if (pixels == 0) return cudaSuccess;
  const unsigned blocks = grid_blocks(context, pixels, kThreads, kBlocksPerMultiprocessor);
  expand_kernel<<<blocks, kThreads, 0, context.stream>>>(mask, geometry, expanded);
  return cudaGetLastError();
}

}  // namespace perfconv::cuda
