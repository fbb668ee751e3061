// Direct weight gradient: dW[n, c, t] = sum over active p of dY[p, n] X[p + t, c].
//
// One warp computes one element of the result: lane l adds the active pixels l, l + 32, ... in
// ascending order, and the 32 sums are added in the order of a tree. No shared memory. Any shape,
// group count and dtype: the readable reference on the device, and the only float64 path.
#include "cuda/device/element.cuh"
#include "cuda/device/grid.cuh"
#include "cuda/device/receptive_field.cuh"
#include "cuda/kernels/launch.h"

namespace perfconv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerMultiprocessor = 8;

// The element (n, c, kh, kw) of the weight.
struct WeightElement {
  int64_t output;
  int64_t input;  // channel of the image
  int64_t kh;
  int64_t kw;
};

__device__ __forceinline__ WeightElement weight_element(const ConvGeometry& g, int64_t index) {
  const int64_t group_in = g.in_channels / g.groups;
  const int64_t tap = index % g.taps();
  const int64_t output = index / g.taps() / group_in;
  const int64_t group = output / (g.out_channels / g.groups);
  return {output, group * group_in + index / g.taps() % group_in, tap / g.kernel_width,
          tap % g.kernel_width};
}

// The share of one lane.
template <class T>
__device__ SumType<T> add_products(const GradArgs& args, const WeightElement& element, int lane) {
  const ConvGeometry& g = args.geometry;
  const T* grad = static_cast<const T*>(args.grad_output) + element.output;
  const T* input = static_cast<const T*>(args.operand) + element.input;
  const int64_t count = *args.active.count;
  SumType<T> sum = 0;
  for (int64_t i = lane; i < count; i += 32) {
    const int64_t position = args.active.idx[i];
    const Receptive field = receptive_field(g, position);
    const int64_t y = field.y + element.kh * g.dilation_h;
    const int64_t x = field.x + element.kw * g.dilation_w;
    if (y < 0 || y >= g.in_height || x < 0 || x >= g.in_width) continue;
    const int64_t pixel = (field.image * g.in_height + y) * g.in_width + x;
    sum += to_sum(grad[position * g.out_channels]) * to_sum(input[pixel * g.in_channels]);
  }
  return sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    wgrad_direct_kernel(const __grid_constant__ GradArgs args) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int64_t warps = int64_t{gridDim.x} * kThreads / 32;
  const ConvGeometry& g = args.geometry;
  const int64_t elements = g.out_channels * g.taps() * (g.in_channels / g.groups);
  T* result = static_cast<T*>(args.result);
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / 32; i < elements; i += warps) {
    SumType<T> sum = add_products<T>(args, weight_element(g, i), lane);
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(~0u, sum, step);
    if (lane == 0) result[i] = from_sum<T>(sum);
  }
}

}  // namespace

cudaError_t launch_wgrad_direct(const LaunchContext& context, const GradArgs& args) {
  const ConvGeometry& g = args.geometry;
  const int64_t elements = g.out_channels * g.taps() * (g.in_channels / g.groups);
  if (elements == 0) return cudaSuccess;
  const unsigned blocks = grid_blocks(context, elements * 32, kThreads, kBlocksPerMultiprocessor);
  return visit_storage(args.storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    wgrad_direct_kernel<T><<<blocks, kThreads, 0, context.stream>>>(args);
    return cudaGetLastError();
  });
}

}  // namespace perfconv::cuda
