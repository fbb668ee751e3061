// Implicit GEMM of the forward pass on sm_90a: the product of forward_implicit.cu by the kernel of
// device/wgmma_gemm.cuh; its tiles are in wgmma_choice.cuh.
#include "cuda/device/forward_gemm.cuh"
#include "cuda/device/wgmma_choice.cuh"
#include "cuda/kernels/launch_sm90a.h"

namespace perfconv::cuda {
namespace {

template <class Function>
auto visit_tile(const LaunchContext& context, const ForwardArgs& args, const GemmArgs& gemm,
                Function function) {
  return visit_wgmma_tile<kForwardLayout>(context, gemm, args.storage, args.active.capacity,
                                          function);
}

}  // namespace

int64_t forward_wgmma_workspace(const LaunchContext& context, const ForwardArgs& args) {
  const GemmArgs gemm = forward_gemm_args(args);
  return visit_tile(context, args, gemm, [&](auto tag) {
    using Tile = typename decltype(tag)::Type;
    return wgmma_workspace<Tile, ForwardRows>(context, gemm, args.active.capacity);
  });
}

cudaError_t launch_forward_wgmma(const LaunchContext& context, const ForwardArgs& args) {
  const ForwardRows rows = forward_rows(args);
  const GemmArgs gemm = forward_gemm_args(args);
  return visit_tile(context, args, gemm, [&](auto tag) {
    using Tile = typename decltype(tag)::Type;
    return launch_wgmma_gemm<Tile>(context, gemm, rows, args.active.capacity);
  });
}

}  // namespace perfconv::cuda
