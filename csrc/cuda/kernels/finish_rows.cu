// The output of a convolution from its sums: out[idx[i], n] = act(sums[i, n] + ...), and the fill.
//
// One thread an element in a grid-stride loop over count x C_out, neighbouring threads along the
// channels; the same threads then fill the inactive pixels.
#include "cuda/device/epilogue.cuh"
#include "cuda/device/fill.cuh"
#include "cuda/device/grid.cuh"
#include "cuda/kernels/launch.h"

namespace perfconv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerMultiprocessor = 8;
constexpr int kLeastBlocks = 3;  // resident: 80 registers a thread, no spills

template <class T>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    finish_rows_kernel(const __grid_constant__ ForwardArgs args,
                       const SumType<T>* __restrict__ sums) {
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t threads = int64_t{gridDim.x} * kThreads;
  const int64_t channels = args.geometry.out_channels;
  const int64_t elements = *args.active.count * channels;
  T* output = static_cast<T*>(args.output);
  for (int64_t i = thread; i < elements; i += threads) {
    const int64_t row = i / channels;
    const int64_t channel = i - row * channels;
    const int64_t offset = args.active.idx[row] * channels + channel;
    output[offset] = finish<T>(sums[i], args.epilogue, channel, offset);
  }
  fill_inactive<T>(args.mask, args.epilogue, channels, false, args.output);
}

}  // namespace

cudaError_t launch_finish_rows(const LaunchContext& context, const ForwardArgs& args,
                               const void* sums) {
  const int64_t elements = args.mask.pixels() * args.geometry.out_channels;
  if (elements == 0) return cudaSuccess;
  const unsigned blocks = grid_blocks(context, elements, kThreads, kBlocksPerMultiprocessor);
  return visit_storage(args.storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    finish_rows_kernel<T>
        <<<blocks, kThreads, 0, context.stream>>>(args, static_cast<const SumType<T>*>(sums));
    return cudaGetLastError();
  });
}

}  // namespace perfconv::cuda
