// Weight gradient over the active pixels on sm_90a: that of wgrad_implicit.cu by the kernel of
// device/wgmma_wgrad.cuh.
#include "cuda/device/wgmma_wgrad.cuh"
#include "cuda/device/wgrad_rows.cuh"
#include "cuda/kernels/launch_sm90a.h"

namespace perfconv::cuda {
namespace {

template <class Function>
auto visit_problem(const GradArgs& args, Function function) {
  WgradArgs wgrad = wgrad_args(args);
  return visit_wgmma_outer(wgrad, args.storage, [&](auto tag) {
    using Tile = typename decltype(tag)::Type;
    wgrad.slices = slice_count(wgrad_tiles<Tile>(wgrad), args.active.capacity);
    return function(tag, wgrad);
  });
}

}  // namespace

int64_t wgrad_wgmma_workspace(const GradArgs& args) {
  return visit_problem(args,
                       [](auto, const WgradArgs& wgrad) { return wgrad_partial_bytes(wgrad); });
}

cudaError_t launch_wgrad_wgmma(const LaunchContext& context, const GradArgs& args) {
  return visit_problem(args, [&](auto tag, const WgradArgs& wgrad) {
    using Tile = typename decltype(tag)::Type;
    const ActiveRows rows{args.geometry, args.active};
    const cudaError_t status = launch_wgmma_wgrad<Tile>(context, wgrad, rows);
    if (status != cudaSuccess) return status;
    return launch_wgrad_reduce<typename Tile::Element>(context, wgrad, args.result);
  });
}

}  // namespace perfconv::cuda
