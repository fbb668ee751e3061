// Weight gradient of multi-dilation convolution on sm_90a: that of multi_dilation_implicit.cu by
// the kernel of device/wgmma_wgrad.cuh.
#include "cuda/device/branch_wgrad.cuh"
#include "cuda/device/wgmma_wgrad.cuh"
#include "cuda/kernels/launch_sm90a.h"

namespace perfconv::cuda {
namespace {

template <class Function>
auto visit_weight(const MultiDilationArgs& args, void* workspace, Function function) {
  WgradArgs wgrad = branch_wgrad_args(args, workspace);
  return visit_wgmma_outer(wgrad, args.storage, [&](auto tag) {
    using Tile = typename decltype(tag)::Type;
    wgrad.slices = branch_slices<Tile>(args, wgrad);
    return function(tag, wgrad);
  });
}

}  // namespace

int64_t multi_dilation_wgrad_wgmma_workspace(const MultiDilationArgs& args) {
  return visit_weight(args, nullptr,
                      [](auto, const WgradArgs& wgrad) { return wgrad_partial_bytes(wgrad); });
}

cudaError_t launch_multi_dilation_wgrad_wgmma(const LaunchContext& context,
                                              const MultiDilationArgs& args,
                                              const SortedBranches& pixels, void* workspace) {
  return visit_weight(args, workspace, [&](auto tag, const WgradArgs& wgrad) {
    using Tile = typename decltype(tag)::Type;
    const cudaError_t status = launch_wgmma_wgrad<Tile>(context, wgrad, BranchPixels{args, pixels});
    if (status != cudaSuccess) return status;
    return launch_wgrad_reduce<typename Tile::Element>(context, wgrad, args.output);
  });
}

}  // namespace perfconv::cuda
