// Gradients of the depthwise convolution, where channel c of the output is made of channel c of the
// input: both are limited by memory.
//
//   dX[q, c] = sum over taps t of dY[p, c] w[c, t], p the active output that reads q through t
//   dW[c, t] = sum over active p of dY[p, c] X[p + t, c]
//
// dgrad_depthwise_kernel: a warp takes a pixel, its lanes neighbouring channels.
// wgrad_depthwise_kernel: grid (channels / 32, slices of the list, taps); lane = channel, the eight
// warps of a block share the pixels of a slice; their sums are added in order in shared memory
// (32 x 8 sums) and go to partials[slice][c][t], which the reduction of wgrad_gemm.cuh adds.
#include "cuda/device/grad_geometry.cuh"
#include "cuda/device/receptive_field.cuh"
#include "cuda/device/wgrad_choice.cuh"
#include "cuda/kernels/launch.h"

namespace perfconv::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kBlocksPerMultiprocessor = 8;
constexpr int kLeastBlocks = 4;  // resident on a multiprocessor: 64 registers, no spills

template <class T>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    dgrad_depthwise_kernel(const __grid_constant__ GradArgs args) {
  const ConvGeometry& g = args.geometry;
  const auto channels = static_cast<int>(g.in_channels);
  const auto taps = static_cast<int>(g.taps());
  const auto pixels = static_cast<uint32_t>(g.in_pixels());  // below 2^31
  const T* weight = static_cast<const T*>(args.operand);
  for (uint32_t q = blockIdx.x * kWarps + threadIdx.x / 32; q < pixels; q += gridDim.x * kWarps) {
    const InputPixel pixel = input_pixel(g, q);
    const uint8_t* mask = image_mask(args.mask, pixel);
    const T* grad = static_cast<const T*>(args.grad_output) + output_begin(g, pixel) * channels;
    T* result = static_cast<T*>(args.result) + int64_t{q} * channels;
    for (int c = static_cast<int>(threadIdx.x) % 32; c < channels; c += 32) {
      SumType<T> sum = 0;
      int tap = 0;
      for (int kh = 0; kh < g.kernel_height; ++kh) {
        for (int kw = 0; kw < g.kernel_width; ++kw, ++tap) {
          const int output = output_position(g, pixel, kh, kw);
          if (output < 0 || mask[output] == 0) continue;
          sum += to_sum(grad[int64_t{output} * channels + c]) * to_sum(weight[c * taps + tap]);
        }
      }
      result[c] = from_sum<T>(sum);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    wgrad_depthwise_kernel(const __grid_constant__ GradArgs args,
                           const __grid_constant__ WgradArgs wgrad) {
  __shared__ float warp_sums[kWarps][32];
  const ConvGeometry& g = args.geometry;
  const auto lane = static_cast<int>(threadIdx.x) % 32;
  const auto warp = static_cast<int>(threadIdx.x) / 32;
  const auto channels = static_cast<int>(g.out_channels);
  const int channel = static_cast<int>(blockIdx.x) * 32 + lane;
  const auto tap = static_cast<int>(blockIdx.z);
  const int kh = tap / wgrad.kernel_width;
  const int kw = tap - kh * wgrad.kernel_width;
  const int count = *args.active.count;
  const int length = static_cast<int>(ceil_div(count, wgrad.slices));
  const int64_t begin = int64_t{length} * blockIdx.y;
  const int64_t end = min(begin + length, int64_t{count});
  float sum = 0;
  for (int64_t i = begin + warp; i < end; i += kWarps) {
    const int64_t position = args.active.idx[i];
    const Receptive field = receptive_field(g, position);
    const int64_t y = field.y + kh * g.dilation_h;
    const int64_t x = field.x + kw * g.dilation_w;
    if (y < 0 || y >= g.in_height || x < 0 || x >= g.in_width || channel >= channels) continue;
    const int64_t pixel = (field.image * g.in_height + y) * g.in_width + x;
    sum += to_sum(static_cast<const T*>(args.grad_output)[position * channels + channel]) *
           to_sum(static_cast<const T*>(args.operand)[pixel * channels + channel]);
  }
  warp_sums[warp][lane] = sum;
  __syncthreads();  // sums of the warps readable
  if (warp != 0 || channel >= channels) return;
#pragma unroll
  for (int w = 1; w < kWarps; ++w) sum += warp_sums[w][lane];
  wgrad.partials[blockIdx.y * wgrad.weight_elements() + channel * wgrad.taps() + tap] = sum;
}

WgradArgs wgrad_args(const GradArgs& args) {
  const ConvGeometry& g = args.geometry;
  WgradArgs wgrad;
  wgrad.partials = static_cast<float*>(args.workspace);
  wgrad.outputs = 1;
  wgrad.inputs = 1;
  wgrad.groups = static_cast<int>(g.groups);
  wgrad.kernel_height = static_cast<int>(g.kernel_height);
  wgrad.kernel_width = static_cast<int>(g.kernel_width);
  wgrad.slices = slice_count(ceil_div(g.groups, 32) * g.taps(), args.active.capacity);
  return wgrad;
}

}  // namespace

cudaError_t launch_dgrad_depthwise(const LaunchContext& context, const GradArgs& args) {
  const int64_t pixels = args.geometry.in_pixels();
  if (pixels == 0) return cudaSuccess;
  const unsigned blocks = grid_blocks(context, pixels, kWarps, kBlocksPerMultiprocessor);
  return visit_single(args.storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    dgrad_depthwise_kernel<T><<<blocks, kThreads, 0, context.stream>>>(args);
    return cudaGetLastError();
  });
}

int64_t wgrad_depthwise_workspace(const GradArgs& args) {
  return wgrad_partial_bytes(wgrad_args(args));
}

cudaError_t launch_wgrad_depthwise(const LaunchContext& context, const GradArgs& args) {
  const WgradArgs wgrad = wgrad_args(args);
  const dim3 grid(static_cast<unsigned>(ceil_div(args.geometry.out_channels, 32)),
                  static_cast<unsigned>(wgrad.slices), static_cast<unsigned>(wgrad.taps()));
  return visit_single(args.storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    wgrad_depthwise_kernel<T><<<grid, kThreads, 0, context.stream>>>(args, wgrad);
    return launch_wgrad_reduce<T>(context, wgrad, args.result);
  });
}

}  // namespace perfconv::cuda
