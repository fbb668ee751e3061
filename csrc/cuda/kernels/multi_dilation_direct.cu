// Multi-dilation convolution and its gradients as their definitions read, for any shape and dtype.
// With k the branch that output pixel p chose, d its dilation and t over taps around the centre:
//
//   out[p, n] = act(sum_{t, c} in[p + d t, c] w_k[n, t, c] + bias_k[n]), in[p, n] where d is 0
//   dX[q, c] = sum_{k, t, n} dY[q - d_k t, n] w_k[n, t, c] over the pixels that chose k, + copies
//   dW_k[n, c, t] = sum over the pixels p that chose k of dY[p, n] X[p + d_k t, c]
//
// forward: a thread an output element, grid-stride; inactive pixels get the fill in the same
// launch. dgrad: a warp an input pixel, lanes neighbouring channels; branches in order. wgrad: a
// warp an element of the weight, lanes neighbouring pixels, their sums added in the order of a
// tree.
#include "cuda/device/branch_places.cuh"
#include "cuda/device/epilogue.cuh"
#include "cuda/device/grid.cuh"
#include "cuda/kernels/launch.h"

namespace perfconv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kBlocksPerMultiprocessor = 8;
constexpr int kLeastBlocks = 2;  // resident on a multiprocessor: 128 registers, no spills

template <class T>
__device__ SumType<T> convolve(const MultiDilationArgs& args, int64_t position, int branch,
                               int channel) {
  const ConvGeometry& g = args.geometry;
  const auto side = static_cast<int>(g.kernel_height);
  const Place place = place_of(g, position);
  const T* tap = static_cast<const T*>(args.weight) + branch * args.weight_pitch +
                 channel * g.taps() * g.in_channels;
  SumType<T> sum = 0;
  for (int kh = 0; kh < side; ++kh) {
    for (int kw = 0; kw < side; ++kw, tap += g.in_channels) {
      const int64_t dilation = args.dilations[branch];
      const int64_t pixel = position_at(g, place, place.y + (kh - side / 2) * dilation,
                                        place.x + (kw - side / 2) * dilation);
      if (pixel < 0) continue;
      const T* row = static_cast<const T*>(args.input) + pixel * g.in_channels;
      for (int c = 0; c < g.in_channels; ++c) sum += to_sum(row[c]) * to_sum(tap[c]);
    }
  }
  return sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    multi_dilation_forward_kernel(const __grid_constant__ MultiDilationArgs args) {
  const auto channels = static_cast<uint32_t>(args.geometry.out_channels);
  const int64_t pixels = args.geometry.out_pixels();
  const int64_t warps = int64_t{gridDim.x} * kWarps;
  T* output = static_cast<T*>(args.output);
  const T* base = static_cast<const T*>(args.epilogue.base);
  for (int64_t p = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32; p < pixels; p += warps) {
    const int branch = branch_of(args, p);
    if (branch < 0 && leaves_inactive(args.epilogue.fill)) continue;
    for (uint32_t n = threadIdx.x % 32; n < channels; n += 32) {
      const int64_t offset = p * channels + n;
      if (branch < 0) {
        output[offset] = base != nullptr ? base[offset] : from_sum<T>(SumType<T>(0));
      } else if (args.dilations[branch] == 0) {
        output[offset] = static_cast<const T*>(args.input)[offset];
      } else {
        const auto channel = static_cast<int>(n);
        output[offset] = finish<T>(convolve<T>(args, p, branch, channel), args.epilogue,
                                   branch * args.bias_pitch + channel, offset);
      }
    }
  }
}

// The share of one branch in the gradient of an input channel.
template <class T>
__device__ SumType<T> gather_branch(const MultiDilationArgs& args, const Place& place, int branch,
                                    int channel) {
  const ConvGeometry& g = args.geometry;
  const auto side = static_cast<int>(g.kernel_height);
  const int64_t pitch = g.taps() * g.in_channels;  // of an output channel in the weight
  const int64_t dilation = args.dilations[branch];
  const T* tap = static_cast<const T*>(args.weight) + branch * args.weight_pitch + channel;
  SumType<T> sum = 0;
  for (int kh = 0; kh < side; ++kh) {
    for (int kw = 0; kw < side; ++kw, tap += g.in_channels) {
      const int64_t output = position_at(g, place, place.y - (kh - side / 2) * dilation,
                                         place.x - (kw - side / 2) * dilation);
      if (output < 0 || args.choice[output] != branch) continue;
      const T* row = static_cast<const T*>(args.grad_output) + output * g.out_channels;
      for (int n = 0; n < g.out_channels; ++n) sum += to_sum(row[n]) * to_sum(tap[n * pitch]);
    }
  }
  return sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    multi_dilation_dgrad_kernel(const __grid_constant__ MultiDilationArgs args) {
  const ConvGeometry& g = args.geometry;
  const auto channels = static_cast<int>(g.in_channels);
  const int64_t warps = int64_t{gridDim.x} * kWarps;
  for (int64_t q = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32; q < g.in_pixels(); q += warps) {
    const Place place = place_of(g, q);
    const int own = branch_of(args, q);
    const bool is_copied = own >= 0 && args.dilations[own] == 0;
    for (int c = static_cast<int>(threadIdx.x) % 32; c < channels; c += 32) {
      SumType<T> sum = 0;
      for (int branch = 0; branch < args.branches; ++branch) {
        if (args.dilations[branch] != 0) sum += gather_branch<T>(args, place, branch, c);
      }
      const int64_t offset = q * channels + c;
      if (is_copied) sum += to_sum(static_cast<const T*>(args.grad_output)[offset]);
      static_cast<T*>(args.output)[offset] = from_sum<T>(sum);
    }
  }
}

// The share of one lane in an element (output, input, kh, kw) of one branch's weight, or of all.
template <class T>
__device__ SumType<T> add_products(const MultiDilationArgs& args, int only, int output, int input,
                                   int kh, int kw) {
  const ConvGeometry& g = args.geometry;
  const auto half = static_cast<int>(g.kernel_height) / 2;
  SumType<T> sum = 0;
  for (int64_t p = threadIdx.x % 32; p < g.out_pixels(); p += 32) {
    const int branch = branch_of(args, p);
    if (branch < 0 || (only >= 0 && branch != only)) continue;
    const int64_t dilation = args.dilations[branch];
    if (dilation == 0) continue;
    const Place place = place_of(g, p);
    const int64_t pixel =
        position_at(g, place, place.y + (kh - half) * dilation, place.x + (kw - half) * dilation);
    if (pixel < 0) continue;
    sum += to_sum(static_cast<const T*>(args.grad_output)[p * g.out_channels + output]) *
           to_sum(static_cast<const T*>(args.input)[pixel * g.in_channels + input]);
  }
  return sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    multi_dilation_wgrad_kernel(const __grid_constant__ MultiDilationArgs args) {
  const ConvGeometry& g = args.geometry;
  const auto taps = static_cast<uint32_t>(g.taps());
  const auto side = static_cast<uint32_t>(g.kernel_width);
  const auto inputs = static_cast<uint32_t>(g.in_channels);
  const auto elements = static_cast<uint32_t>(g.out_channels) * inputs * taps;  // below 2^31
  const auto branch = static_cast<int>(blockIdx.y);  // of an untied weight
  const int only = args.weight_pitch == 0 ? -1 : branch;
  T* result = static_cast<T*>(args.output) + int64_t{branch} * elements;
  const uint32_t warps = gridDim.x * kWarps;
  for (uint32_t i = blockIdx.x * kWarps + threadIdx.x / 32; i < elements; i += warps) {
    const uint32_t tap = i % taps;
    const uint32_t channels = i / taps;
    SumType<T> sum = add_products<T>(args, only, static_cast<int>(channels / inputs),
                                     static_cast<int>(channels % inputs),
                                     static_cast<int>(tap / side), static_cast<int>(tap % side));
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(~0u, sum, step);
    if (threadIdx.x % 32 == 0) result[i] = from_sum<T>(sum);
  }
}

__global__ void __launch_bounds__(kThreads)
    chosen_mask_kernel(const int32_t* __restrict__ choice, int branches, int64_t pixels,
                       uint8_t* __restrict__ mask) {
  const int64_t threads = int64_t{gridDim.x} * kThreads;
  for (int64_t p = int64_t{blockIdx.x} * kThreads + threadIdx.x; p < pixels; p += threads) {
    mask[p] = choice[p] >= 0 && choice[p] < branches ? 1 : 0;
  }
}

}  // namespace

cudaError_t launch_multi_dilation_forward(const LaunchContext& context,
                                          const MultiDilationArgs& args) {
  const int64_t pixels = args.geometry.out_pixels();
  if (pixels == 0) return cudaSuccess;
  const unsigned blocks = grid_blocks(context, pixels, kWarps, kBlocksPerMultiprocessor);
  return visit_storage(args.storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    multi_dilation_forward_kernel<T><<<blocks, kThreads, 0, context.stream>>>(args);
    return cudaGetLastError();
  });
}

cudaError_t launch_multi_dilation_dgrad(const LaunchContext& context,
                                        const MultiDilationArgs& args) {
  const int64_t pixels = args.geometry.in_pixels();
  if (pixels == 0) return cudaSuccess;
  const unsigned blocks = grid_blocks(context, pixels, kWarps, kBlocksPerMultiprocessor);
  return visit_storage(args.storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    multi_dilation_dgrad_kernel<T><<<blocks, kThreads, 0, context.stream>>>(args);
    return cudaGetLastError();
  });
}

cudaError_t launch_multi_dilation_wgrad(const LaunchContext& context,
                                        const MultiDilationArgs& args) {
  const ConvGeometry& g = args.geometry;
  const int64_t elements = g.out_channels * g.in_channels * g.taps();
  const bool is_tied = args.weight_pitch == 0;
  const dim3 grid(grid_blocks(context, elements, kWarps, kBlocksPerMultiprocessor),
                  is_tied ? 1u : static_cast<unsigned>(args.branches));
  return visit_storage(args.storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    multi_dilation_wgrad_kernel<T><<<grid, kThreads, 0, context.stream>>>(args);
    return cudaGetLastError();
  });
}

cudaError_t launch_chosen_mask(const LaunchContext& context, const int32_t* choice, int branches,
                               int64_t pixels, uint8_t* mask) {
  if (pixels == 0) return cudaSuccess;
  const unsigned blocks = grid_blocks(context, pixels, kThreads, kBlocksPerMultiprocessor);
  chosen_mask_kernel<<<blocks, kThreads, 0, context.stream>>>(choice, branches, pixels, mask);
  return cudaGetLastError();
}

}  // namespace perfconv::cuda
