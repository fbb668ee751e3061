// Implicit GEMM of the forward pass on sm_90a: the product of forward_implicit.cu by the kernel of
// device/wgmma_gemm.cuh; its tiles are in wgmma_choice.cuh.
#include "cuda/device/forward_gemm.cuh"
#include "cuda/device/round_weight.cuh"
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

int64_t weight_elements(const ConvGeometry& g) {
  return g.out_channels * g.taps() * g.group_in_channels();
}

}  // namespace

int64_t forward_wgmma_workspace(const LaunchContext& context, const ForwardArgs& args) {
  const GemmArgs gemm = forward_gemm_args(args);
  const int64_t partials = visit_tile(context, args, gemm, [&](auto tag) {
    using Tile = typename decltype(tag)::Type;
    return wgmma_workspace<Tile, ForwardRows>(context, gemm, args.active.capacity);
  });
  return rounded_bytes(args.storage, weight_elements(args.geometry)) + partials;
}

cudaError_t launch_forward_wgmma(const LaunchContext& context, const ForwardArgs& args) {
  const ForwardRows rows = forward_rows(args);
  GemmArgs gemm = forward_gemm_args(args);
  const cudaError_t status =
      round_weight(context, args.storage, weight_elements(args.geometry), &gemm);
  if (status != cudaSuccess) return status;
  return visit_tile(context, args, gemm, [&](auto tag) {
    using Tile = typename decltype(tag)::Type;
    return launch_wgmma_gemm<Tile>(context, gemm, rows, args.active.capacity);
  });
}

}  // namespace perfconv::cuda
