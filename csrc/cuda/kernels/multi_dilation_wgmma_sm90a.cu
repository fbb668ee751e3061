// Multi-dilation convolution on sm_90a: the product of multi_dilation_implicit.cu by the kernel of
// device/wgmma_gemm.cuh.
#include "cuda/device/branch_gemm.cuh"
#include "cuda/device/round_weight.cuh"
#include "cuda/device/wgmma_choice.cuh"
#include "cuda/kernels/launch_sm90a.h"

namespace perfconv::cuda {
namespace {

template <class Function>
auto visit_tile(const LaunchContext& context, const MultiDilationArgs& args, const GemmArgs& gemm,
                Function function) {
  return visit_wgmma_tile<kBranchLayout>(context, gemm, args.storage, args.geometry.out_pixels(),
                                         function);
}

int64_t weight_elements(const MultiDilationArgs& args) {
  const ConvGeometry& g = args.geometry;
  return (args.weight_pitch == 0 ? 1 : args.branches) * g.out_channels * g.taps() * g.in_channels;
}

}  // namespace

int64_t multi_dilation_wgmma_workspace(const LaunchContext& context,
                                       const MultiDilationArgs& args) {
  const GemmArgs gemm = branch_gemm_args(args, nullptr);
  const int64_t partials = visit_tile(context, args, gemm, [&](auto tag) {
    using Tile = typename decltype(tag)::Type;
    return wgmma_workspace<Tile, BranchRows>(context, gemm, most_branch_rows(args, Tile::kRows));
  });
  return rounded_bytes(args.storage, weight_elements(args)) + partials;
}

cudaError_t launch_multi_dilation_wgmma(const LaunchContext& context, const MultiDilationArgs& args,
                                        const SortedBranches& pixels, void* workspace) {
  GemmArgs gemm = branch_gemm_args(args, static_cast<float*>(workspace));
  const cudaError_t status = round_weight(context, args.storage, weight_elements(args), &gemm);
  if (status != cudaSuccess) return status;
  return visit_tile(context, args, gemm, [&](auto tag) {
    using Tile = typename decltype(tag)::Type;
    return launch_wgmma_gemm<Tile>(context, gemm, branch_rows<Tile>(args, pixels),
                                   most_branch_rows(args, Tile::kRows));
  });
}

}  // namespace perfconv::cuda
