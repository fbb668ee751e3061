// Implicit GEMM of the forward pass: M = active pixels, N = output channels of a group, K = taps x
// input channels of a group. The kernel is device/implicit_gemm.cuh; its tiles are in
// gemm_choice.cuh.
#include "cuda/device/forward_gemm.cuh"
#include "cuda/kernels/launch.h"

namespace perfconv::cuda {
namespace {

template <class Function>
auto visit_tile(const LaunchContext& context, const ForwardArgs& args, const GemmArgs& gemm,
                Function function) {
  return visit_gemm_tile<kForwardLayout>(context, gemm, args.storage, args.allow_tf32,
                                         args.active.capacity, function);
}

}  // namespace

int64_t forward_implicit_workspace(const LaunchContext& context, const ForwardArgs& args) {
  const GemmArgs gemm = forward_gemm_args(args);
  return visit_tile(context, args, gemm, [&](auto tag) {
    using Tile = typename decltype(tag)::Type;
    return gemm_workspace<Tile, ForwardRows>(context, gemm, args.active.capacity);
  });
}

cudaError_t launch_forward_implicit(const LaunchContext& context, const ForwardArgs& args) {
  const ForwardRows rows = forward_rows(args);
  const GemmArgs gemm = forward_gemm_args(args);
  return visit_tile(context, args, gemm, [&](auto tag) {
    using Tile = typename decltype(tag)::Type;
    return launch_implicit_gemm<Tile>(context, gemm, rows, args.active.capacity);
  });
}

}  // namespace perfconv::cuda
