// Implicit GEMM of the input gradient on sm_90a: the product of dgrad_implicit.cu by the kernel of
// device/wgmma_gemm.cuh. The columns of the weight are contiguous: wgmma takes it N-major.
#include "cuda/device/dgrad_gemm.cuh"
#include "cuda/device/wgmma_choice.cuh"
#include "cuda/kernels/launch_sm90a.h"

namespace perfconv::cuda {
namespace {

template <class Function>
auto visit_tile(const LaunchContext& context, const GradArgs& args, const GemmArgs& gemm,
                Function function) {
  return visit_wgmma_tile<kDgradLayout>(context, gemm, args.storage, args.geometry.in_pixels(),
                                        function);
}

}  // namespace

int64_t dgrad_wgmma_workspace(const LaunchContext& context, const GradArgs& args) {
  const GemmArgs gemm = dgrad_gemm_args(args);
  return visit_tile(context, args, gemm, [&](auto tag) {
    using Tile = typename decltype(tag)::Type;
    return wgmma_workspace<Tile, DgradRows>(context, gemm, args.geometry.in_pixels());
  });
}

cudaError_t launch_dgrad_wgmma(const LaunchContext& context, const GradArgs& args,
                               const SortedPixels& pixels) {
  const GemmArgs gemm = dgrad_gemm_args(args);
  const DgradRows rows{args.geometry, pixels};
  return visit_tile(context, args, gemm, [&](auto tag) {
    using Tile = typename decltype(tag)::Type;
    return launch_wgmma_gemm<Tile>(context, gemm, rows, args.geometry.in_pixels());
  });
}

}  // namespace perfconv::cuda
