// Direct convolution at the active pixels: out[p, n] = act(sum_{t, c} in[p + t, c] w[n, t, c] +
// ...).
//
// One thread computes one output element in a grid-stride loop over count x C_out; neighbouring
// threads take neighbouring channels. No shared memory. Any shape, group count and dtype: the
// readable reference on the device, and the only float64 path.
#include "cuda/device/epilogue.cuh"
#include "cuda/device/fill.cuh"
#include "cuda/device/grid.cuh"
#include "cuda/device/receptive_field.cuh"
#include "cuda/kernels/launch.h"

namespace perfconv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerMultiprocessor = 8;
constexpr int kLeastBlocks = 4;  // resident: 64 registers a thread, no spills

template <class T>
__device__ SumType<T> convolve(const ForwardArgs& args, int64_t position, int64_t channel) {
  const ConvGeometry& g = args.geometry;
  const int64_t group_in = g.in_channels / g.groups;
  const int64_t group = channel / (g.out_channels / g.groups);
  const T* input = static_cast<const T*>(args.input) + group * group_in;
  const T* weight = static_cast<const T*>(args.weight) + channel * g.taps() * group_in;
  const Receptive field = receptive_field(g, position);
  SumType<T> sum = 0;
  for (int64_t kh = 0; kh < g.kernel_height; ++kh) {
    const int64_t y = field.y + kh * g.dilation_h;
    if (y < 0 || y >= g.in_height) continue;
    for (int64_t kw = 0; kw < g.kernel_width; ++kw) {
      const int64_t x = field.x + kw * g.dilation_w;
      if (x < 0 || x >= g.in_width) continue;
      const T* pixel = input + ((field.image * g.in_height + y) * g.in_width + x) * g.in_channels;
      const T* tap = weight + (kh * g.kernel_width + kw) * group_in;
      for (int64_t c = 0; c < group_in; ++c) sum += to_sum(pixel[c]) * to_sum(tap[c]);
    }
  }
  return sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    forward_direct_kernel(const __grid_constant__ ForwardArgs args) {
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t threads = int64_t{gridDim.x} * kThreads;
  const int64_t channels = args.geometry.out_channels;
  const int64_t elements = *args.active.count * channels;
  T* output = static_cast<T*>(args.output);
  for (int64_t i = thread; i < elements; i += threads) {
    const int64_t position = args.active.idx[i / channels];
    const int64_t channel = i % channels;
    const int64_t offset = position * channels + channel;
    output[offset] =
        finish<T>(convolve<T>(args, position, channel), args.epilogue, channel, offset);
  }
  fill_inactive<T>(args.mask, args.epilogue, channels, false, args.output);
}

}  // namespace

cudaError_t launch_forward_direct(const LaunchContext& context, const ForwardArgs& args) {
  const int64_t elements = args.mask.pixels() * args.geometry.out_channels;
  if (elements == 0) return cudaSuccess;
  const unsigned blocks = grid_blocks(context, elements, kThreads, kBlocksPerMultiprocessor);
  return visit_storage(args.storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    forward_direct_kernel<T><<<blocks, kThreads, 0, context.stream>>>(args);
    return cudaGetLastError();
  });
}

}  // namespace perfconv::cuda
