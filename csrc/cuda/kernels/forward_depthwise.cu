// Depthwise convolution at the active pixels: out[p, c] = act(sum_t in[p + t, c] w[c, t] + ...).
//
// Limited by memory: one thread computes 16 bytes of neighbouring channels of one pixel after
// another, with the weights of these channels in registers (3x3) or shared memory (other kernels).
//   block: kThreads threads = some pixels x up to 32 runs of channels, runs along neighbouring
//   threads grid: x persistent over the pixels, their number read on the device; y over groups of
//   32 runs shared memory: weights (taps, runs of the block) of 16 bytes, 512 bytes a tap
// The blocks with y = 0 also fill the inactive pixels.
#include "cuda/device/fill.cuh"
#include "cuda/device/grid.cuh"
#include "cuda/device/receptive_field.cuh"
#include "cuda/kernels/launch.h"

namespace perfconv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerMultiprocessor = 4;
constexpr int kLeastBlocks = 2;   // resident: no spills
constexpr int kMostRuns = 32;     // of a block
constexpr int kUnrolledTaps = 9;  // 3x3: nine loads in flight, weights in registers

// weights[tap][run], transposed from w (C, taps).
template <class T>
__device__ void load_weights(const ForwardArgs& args, int first_run, int runs,
                             Run<T, kRunSize<T>>* weights) {
  const int taps = static_cast<int>(args.geometry.taps());
  const T* source = static_cast<const T*>(args.weight) + int64_t{first_run} * kRunSize<T> * taps;
  auto* elements = reinterpret_cast<T*>(weights);
  const int channels = runs * kRunSize<T>;
  for (int i = static_cast<int>(threadIdx.x); i < channels * taps; i += kThreads) {
    elements[i % taps * channels + i / taps] = source[i];
  }
}

// sums += in * weight for one tap, where it lies inside the image.
template <class T>
__device__ __forceinline__ void add_tap(float (&sums)[kRunSize<T>], const ForwardArgs& args,
                                        const Receptive& field, int64_t kh, int64_t kw,
                                        int64_t channel, const Run<T, kRunSize<T>>& weight) {
  const ConvGeometry& g = args.geometry;
  const int64_t y = field.y + kh * g.dilation_h;
  const int64_t x = field.x + kw * g.dilation_w;
  if (y < 0 || y >= g.in_height || x < 0 || x >= g.in_width) return;
  const int64_t pixel = (field.image * g.in_height + y) * g.in_width + x;
  const auto value = load_run<T, kRunSize<T>>(args.input, pixel * g.in_channels + channel);
#pragma unroll
  for (int i = 0; i < kRunSize<T>; ++i) {
    sums[i] = fmaf(to_sum(value.values[i]), to_sum(weight.values[i]), sums[i]);
  }
}

template <class T, bool kIs3x3>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    forward_depthwise_kernel(const __grid_constant__ ForwardArgs args, bool is_vectorised) {
  constexpr int kSize = kRunSize<T>;
  extern __shared__ __align__(16) unsigned char shared[];
  auto* weights = reinterpret_cast<Run<T, kSize>*>(shared);  // (taps, runs)
  const ConvGeometry& g = args.geometry;
  const int first_run = static_cast<int>(blockIdx.y) * kMostRuns;
  const int runs = min(kMostRuns, static_cast<int>(g.in_channels / kSize) - first_run);
  if (blockIdx.y == 0) {
    fill_inactive<T>(args.mask, args.epilogue, g.out_channels, is_vectorised, args.output);
  }
  load_weights<T>(args, first_run, runs, weights);
  __syncthreads();  // weights readable
  const int run = static_cast<int>(threadIdx.x) % runs;
  const int slot = static_cast<int>(threadIdx.x) / runs;
  const int slots = kThreads / runs;
  if (slot >= slots) return;
  Run<T, kSize> own[kIs3x3 ? kUnrolledTaps : 1];
  if constexpr (kIs3x3) {
#pragma unroll
    for (int tap = 0; tap < kUnrolledTaps; ++tap) own[tap] = weights[tap * runs + run];
  }
  const int64_t channel = int64_t{first_run + run} * kSize;
  const int count = *args.active.count;
  for (int64_t r = int64_t{blockIdx.x} * slots + slot; r < count; r += int64_t{gridDim.x} * slots) {
    const int64_t position = args.active.idx[r];
    const Receptive field = receptive_field(g, position);
    float sums[kSize] = {};
    if constexpr (kIs3x3) {
#pragma unroll
      for (int tap = 0; tap < kUnrolledTaps; ++tap) {
        add_tap<T>(sums, args, field, tap / 3, tap % 3, channel, own[tap]);
      }
    } else {
      int tap = run;
      for (int64_t kh = 0; kh < g.kernel_height; ++kh) {
        for (int64_t kw = 0; kw < g.kernel_width; ++kw, tap += runs) {
          add_tap<T>(sums, args, field, kh, kw, channel, weights[tap]);
        }
      }
    }
    store_sums<T>(args.epilogue, sums, is_vectorised, channel, g.out_channels,
                  position * g.out_channels + channel, args.output);
  }
}

template <class T>
cudaError_t launch(const LaunchContext& context, const ForwardArgs& args) {
  const ConvGeometry& g = args.geometry;
  const int64_t runs = g.in_channels / kRunSize<T>;
  const auto groups = static_cast<unsigned>(ceil_div(runs, kMostRuns));
  const unsigned blocks =
      grid_blocks(context, args.mask.pixels() * runs, kThreads, kBlocksPerMultiprocessor);
  const auto shared = static_cast<size_t>(g.taps() * std::min<int64_t>(runs, kMostRuns) * 16);
  const bool is_vectorised = is_vector_image<T>(g.out_channels, args.epilogue, args.output);
  const bool is_3x3 = g.kernel_height == 3 && g.kernel_width == 3;
  const auto kernel =
      is_3x3 ? forward_depthwise_kernel<T, true> : forward_depthwise_kernel<T, false>;
  kernel<<<dim3(blocks, groups), kThreads, shared, context.stream>>>(args, is_vectorised);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_forward_depthwise(const LaunchContext& context, const ForwardArgs& args) {
  if (args.mask.pixels() * args.geometry.out_channels == 0) return cudaSuccess;
  return visit_single(
      args.storage, [&](auto tag) { return launch<typename decltype(tag)::Type>(context, args); });
}

}  // namespace perfconv::cuda
