// For each input pixel the taps through which an active output pixel reads it, as bits, and a key
// by which pixels with similar patterns become neighbours. Active outputs are those of a mask, or
// those that chose one branch of a multi-dilation convolution, for all branches in one launch.
//
// One thread a pixel, blocks along y take the branches. The tiles of dgrad skip a tap that none of
// their pixels has, so the order of the patterns decides how much is multiplied in vain: the key is
// the place of the pattern in a Gray code, where neighbours differ in one tap (K-020), counted
// downwards, so that the pixels that nothing reads come last. More than nine taps are folded into
// nine bits.
#include "cuda/device/branch_places.cuh"
#include "cuda/device/grad_geometry.cuh"
#include "cuda/device/grid.cuh"
#include "cuda/kernels/launch.h"

namespace perfconv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerMultiprocessor = 8;
constexpr int kLeastBlocks = 4;  // of branches, resident on a multiprocessor: without, it spills
constexpr int kMostBits = 9;

// Place of a pattern of up to nine bits in the reflected binary code; 0 is the first.
__device__ __forceinline__ uint32_t gray_rank(uint32_t pattern) {
  pattern ^= pattern >> 1;
  pattern ^= pattern >> 2;
  pattern ^= pattern >> 4;
  pattern ^= pattern >> 8;
  return pattern;
}

// The taps of one pixel.
struct Pattern {
  uint32_t taps = 0;
  uint32_t folded = 0;

  __device__ void add(int tap, int of_taps, int bits) {
    taps |= 1u << tap;
    folded |= 1u << (tap * bits / of_taps);
  }
  __device__ uint32_t key(int bits) const { return (1u << bits) - 1 - gray_rank(folded); }
};

__global__ void __launch_bounds__(kThreads)
    tap_pattern_kernel(const __grid_constant__ ConvGeometry g, const MaskArgs mask,
                       uint32_t* __restrict__ patterns, uint32_t* __restrict__ keys) {
  const auto pixels = static_cast<uint32_t>(g.in_pixels());  // below 2^31
  const auto taps = static_cast<int>(g.taps());
  const int bits = taps < kMostBits ? taps : kMostBits;
  for (uint32_t q = blockIdx.x * kThreads + threadIdx.x; q < pixels; q += gridDim.x * kThreads) {
    const InputPixel pixel = input_pixel(g, q);
    const uint8_t* image = image_mask(mask, pixel);
    Pattern pattern;
    int tap = 0;
    for (int kh = 0; kh < g.kernel_height; ++kh) {
      for (int kw = 0; kw < g.kernel_width; ++kw, ++tap) {
        const int output = output_position(g, pixel, kh, kw);
        if (output >= 0 && image[output] != 0) pattern.add(tap, taps, bits);
      }
    }
    patterns[q] = pattern.taps;
    keys[q] = pattern.key(bits);
  }
}

__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    branch_pattern_kernel(const __grid_constant__ MultiDilationArgs args,
                          uint32_t* __restrict__ patterns, uint32_t* __restrict__ keys) {
  const ConvGeometry& g = args.geometry;
  const auto pixels = static_cast<uint32_t>(g.in_pixels());  // below 2^31
  const auto side = static_cast<int>(g.kernel_height);
  const int taps = side * side;
  const int bits = taps < kMostBits ? taps : kMostBits;
  const auto branch = static_cast<int>(blockIdx.y);
  const int64_t dilation = args.dilations[branch];
  patterns += int64_t{blockIdx.y} * pixels;
  keys += int64_t{blockIdx.y} * pixels;
  for (uint32_t q = blockIdx.x * kThreads + threadIdx.x; q < pixels; q += gridDim.x * kThreads) {
    const Place place = place_of(g, q);
    Pattern pattern;
    int tap = 0;
    for (int kh = 0; kh < side && dilation != 0; ++kh) {
      const int64_t y = place.y - (kh - side / 2) * dilation;
      for (int kw = 0; kw < side; ++kw, ++tap) {
        const int64_t x = place.x - (kw - side / 2) * dilation;
        const int64_t output = position_at(g, place, y, x);
        if (output >= 0 && args.choice[output] == branch) pattern.add(tap, taps, bits);
      }
    }
    patterns[q] = pattern.taps;
    keys[q] = pattern.key(bits);
  }
}

}  // namespace

int tap_key_bits(const ConvGeometry& geometry) {
  return geometry.taps() < kMostBits ? static_cast<int>(geometry.taps()) : kMostBits;
}

cudaError_t launch_tap_patterns(const LaunchContext& context, const ConvGeometry& geometry,
                                const MaskArgs& mask, uint32_t* patterns, uint32_t* keys) {
  const int64_t pixels = geometry.in_pixels();
  if (pixels == 0) return cudaSuccess;
  const unsigned blocks = grid_blocks(context, pixels, kThreads, kBlocksPerMultiprocessor);
  tap_pattern_kernel<<<blocks, kThreads, 0, context.stream>>>(geometry, mask, patterns, keys);
  return cudaGetLastError();
}

cudaError_t launch_branch_patterns(const LaunchContext& context, const MultiDilationArgs& args,
                                   uint32_t* patterns, uint32_t* keys) {
  const int64_t pixels = args.geometry.in_pixels();
  if (pixels == 0) return cudaSuccess;
  const dim3 blocks(grid_blocks(context, pixels, kThreads, kBlocksPerMultiprocessor),
                    static_cast<unsigned>(args.branches));
  branch_pattern_kernel<<<blocks, kThreads, 0, context.stream>>>(args, patterns, keys);
  return cudaGetLastError();
}

}  // namespace perfconv::cuda
