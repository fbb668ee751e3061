// The sums of multi-dilation dgrad by tiles, before and after the branches add to them:
//   start   sums[q] = dY[q] where pixel q chose a branch of dilation 0, which copies; else 0
//   round   dX[q] = sums[q] in the type of the operands
//
// One thread a run of 16 bytes of dX, in a grid-stride loop. Rows are multiples of 16 bytes.
#include "cuda/device/branch_places.cuh"
#include "cuda/device/epilogue.cuh"
#include "cuda/device/grid.cuh"

namespace perfconv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerMultiprocessor = 8;

template <class T>
using SumRun = Run<float, kRunSize<T>>;  // the sums of a run of T

template <class T>
__global__ void __launch_bounds__(kThreads)
    start_sums_kernel(const __grid_constant__ MultiDilationArgs args, int64_t runs, float* sums) {
  const int64_t runs_of_pixel = args.geometry.in_channels / kRunSize<T>;
  const int64_t threads = int64_t{gridDim.x} * kThreads;
  for (int64_t run = int64_t{blockIdx.x} * kThreads + threadIdx.x; run < runs; run += threads) {
    const int branch = branch_of(args, run / runs_of_pixel);
    SumRun<T> start{};
    if (branch >= 0 && args.dilations[branch] == 0) {
      const auto copied = load_run<T, kRunSize<T>>(args.grad_output, run * kRunSize<T>);
#pragma unroll
      for (int i = 0; i < kRunSize<T>; ++i) start.values[i] = to_sum(copied.values[i]);
    }
    store_run(sums, run * kRunSize<T>, start);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    round_sums_kernel(const float* __restrict__ sums, int64_t runs, T* __restrict__ result) {
  const int64_t threads = int64_t{gridDim.x} * kThreads;
  for (int64_t run = int64_t{blockIdx.x} * kThreads + threadIdx.x; run < runs; run += threads) {
    const auto exact = load_run<float, kRunSize<T>>(sums, run * kRunSize<T>);
    Run<T, kRunSize<T>> rounded;
#pragma unroll
    for (int i = 0; i < kRunSize<T>; ++i) rounded.values[i] = from_sum<T>(exact.values[i]);
    store_run(result, run * kRunSize<T>, rounded);
  }
}

// Calls function(TypeTag<T>(), runs, blocks); nothing where there is no run.
template <class Function>
cudaError_t visit_runs(const LaunchContext& context, const MultiDilationArgs& args,
                       Function function) {
  return visit_single(args.storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    const int64_t runs = args.geometry.in_pixels() * args.geometry.in_channels / kRunSize<T>;
    if (runs == 0) return cudaSuccess;
    function(tag, runs, grid_blocks(context, runs, kThreads, kBlocksPerMultiprocessor));
    return cudaGetLastError();
  });
}

}  // namespace

cudaError_t launch_start_sums(const LaunchContext& context, const MultiDilationArgs& args,
                              float* sums) {
  return visit_runs(context, args, [&](auto tag, int64_t runs, unsigned blocks) {
    using T = typename decltype(tag)::Type;
    start_sums_kernel<T><<<blocks, kThreads, 0, context.stream>>>(args, runs, sums);
  });
}

cudaError_t launch_round_sums(const LaunchContext& context, const MultiDilationArgs& args,
                              const float* sums) {
  return visit_runs(context, args, [&](auto tag, int64_t runs, unsigned blocks) {
    using T = typename decltype(tag)::Type;
    if constexpr (!std::is_same_v<T, float>) {
      auto* result = static_cast<T*>(args.output);
      round_sums_kernel<T><<<blocks, kThreads, 0, context.stream>>>(sums, runs, result);
    }
  });
}

}  // namespace perfconv::cuda
