// Implicit GEMM of the input gradient: M = input pixels that active outputs read, N = input
// channels of a group, K = taps x output channels of a group.
//
// The kernel is device/implicit_gemm.cuh. Its rows come sorted by tap pattern (counting_sort.cu,
// tap_patterns.cu), and a tile skips the taps that none of its rows has: what it multiplies beyond
// the exact MACs is 1.05 to 1.5 times them (K-020), with every sum in one order and written once.
// The branches of a multi-dilation convolution take turns in adding to an image of sums.
#include "cuda/device/dgrad_gemm.cuh"
#include "cuda/kernels/launch.h"

namespace perfconv::cuda {
namespace {

template <class Function>
auto visit_tile(const LaunchContext& context, const GradArgs& args, const GemmArgs& gemm,
                Function function) {
  return visit_gemm_tile<kDgradLayout>(context, gemm, args.storage, args.allow_tf32,
                                       args.geometry.in_pixels(), function);
}

}  // namespace

int64_t dgrad_implicit_workspace(const LaunchContext& context, const GradArgs& args) {
  const GemmArgs gemm = dgrad_gemm_args(args);
  return visit_tile(context, args, gemm, [&](auto tag) {
    using Tile = typename decltype(tag)::Type;
    return gemm_workspace<Tile, DgradRows>(context, gemm, args.geometry.in_pixels());
  });
}

cudaError_t launch_dgrad_implicit(const LaunchContext& context, const GradArgs& args,
                                  const SortedPixels& pixels) {
  const GemmArgs gemm = dgrad_gemm_args(args);
  const DgradRows rows{args.geometry, pixels};
  return visit_tile(context, args, gemm, [&](auto tag) {
    using Tile = typename decltype(tag)::Type;
    return launch_implicit_gemm<Tile>(context, gemm, rows, args.geometry.in_pixels());
  });
}

}  // namespace perfconv::cuda
