// Weight gradient over the active pixels by tiles: device/wgrad_gemm.cuh with the pixels of the
// active list as its rows.
#include "cuda/device/wgrad_choice.cuh"
#include "cuda/device/wgrad_rows.cuh"
#include "cuda/kernels/launch.h"

namespace perfconv::cuda {
namespace {

template <class Function>
auto visit_problem(const GradArgs& args, Function function) {
  WgradArgs wgrad = wgrad_args(args);
  return visit_wgrad_tile(wgrad, args.storage, args.allow_tf32, [&](auto tag) {
    using Tile = typename decltype(tag)::Type;
    wgrad.slices = slice_count(wgrad_tiles<Tile>(wgrad), args.active.capacity);
    return function(tag, wgrad);
  });
}

}  // namespace

int64_t wgrad_implicit_workspace(const GradArgs& args) {
  return visit_problem(args,
                       [](auto, const WgradArgs& wgrad) { return wgrad_partial_bytes(wgrad); });
}

cudaError_t launch_wgrad_implicit(const LaunchContext& context, const GradArgs& args) {
  return visit_problem(args, [&](auto tag, const WgradArgs& wgrad) {
    using Tile = typename decltype(tag)::Type;
    const ActiveRows rows{args.geometry, args.active};
    const cudaError_t status = launch_wgrad_gemm<Tile>(context, wgrad, rows);
    if (status != cudaSuccess) return status;
    return launch_wgrad_reduce<typename Tile::Element>(context, wgrad, args.result);
  });
}

}  // namespace perfconv::cuda
