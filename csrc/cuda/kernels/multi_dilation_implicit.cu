// Multi-dilation convolution by tiles: one launch for all branches, device/implicit_gemm.cuh with
// the rows of device/branch_rows.cuh. The weight gradient is device/wgrad_gemm.cuh with those of
// device/branch_wgrad.cuh.
#include "cuda/device/branch_gemm.cuh"
#include "cuda/device/branch_places.cuh"
#include "cuda/device/branch_wgrad.cuh"
#include "cuda/kernels/launch.h"

namespace perfconv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerMultiprocessor = 8;

// Pixels that copy the input, or whose value is no branch, get the key after the last branch.
__global__ void __launch_bounds__(kThreads)
    branch_key_kernel(const __grid_constant__ MultiDilationArgs args, int64_t pixels,
                      uint32_t* __restrict__ keys) {
  const int64_t threads = int64_t{gridDim.x} * kThreads;
  for (int64_t p = int64_t{blockIdx.x} * kThreads + threadIdx.x; p < pixels; p += threads) {
    const int branch = branch_of(args, p);
    const bool is_row = branch >= 0 && args.dilations[branch] != 0;
    keys[p] = static_cast<uint32_t>(is_row ? branch : args.branches);
  }
}

template <class Function>
auto visit_tile(const LaunchContext& context, const MultiDilationArgs& args, const GemmArgs& gemm,
                Function function) {
  return visit_gemm_tile<kBranchLayout>(context, gemm, args.storage, args.allow_tf32,
                                        args.geometry.out_pixels(), function);
}

template <class Function>
auto visit_weight(const MultiDilationArgs& args, void* workspace, Function function) {
  WgradArgs wgrad = branch_wgrad_args(args, workspace);
  return visit_wgrad_tile(wgrad, args.storage, args.allow_tf32, [&](auto tag) {
    using Tile = typename decltype(tag)::Type;
    wgrad.slices = branch_slices<Tile>(args, wgrad);
    return function(tag, wgrad);
  });
}

}  // namespace

int branch_key_bits(int branches) {
  int bits = 1;
  while ((1 << bits) <= branches) ++bits;
  return bits;
}

cudaError_t launch_branch_keys(const LaunchContext& context, const MultiDilationArgs& args,
                               uint32_t* keys) {
  const int64_t pixels = args.geometry.out_pixels();
  if (pixels == 0) return cudaSuccess;
  const unsigned blocks = grid_blocks(context, pixels, kThreads, kBlocksPerMultiprocessor);
  branch_key_kernel<<<blocks, kThreads, 0, context.stream>>>(args, pixels, keys);
  return cudaGetLastError();
}

int64_t multi_dilation_workspace(const LaunchContext& context, const MultiDilationArgs& args) {
  const GemmArgs gemm = branch_gemm_args(args, nullptr);
  return visit_tile(context, args, gemm, [&](auto tag) {
    using Tile = typename decltype(tag)::Type;
    return gemm_workspace<Tile, BranchRows>(context, gemm, most_branch_rows(args, Tile::kRows));
  });
}

cudaError_t launch_multi_dilation_implicit(const LaunchContext& context,
                                           const MultiDilationArgs& args,
                                           const SortedBranches& pixels, void* workspace) {
  const GemmArgs gemm = branch_gemm_args(args, static_cast<float*>(workspace));
  return visit_tile(context, args, gemm, [&](auto tag) {
    using Tile = typename decltype(tag)::Type;
    return launch_implicit_gemm<Tile>(context, gemm, branch_rows<Tile>(args, pixels),
                                      most_branch_rows(args, Tile::kRows));
  });
}

int64_t multi_dilation_wgrad_workspace(const MultiDilationArgs& args) {
  return visit_weight(args, nullptr,
                      [](auto, const WgradArgs& wgrad) { return wgrad_partial_bytes(wgrad); });
}

cudaError_t launch_multi_dilation_wgrad_implicit(const LaunchContext& context,
                                                 const MultiDilationArgs& args,
                                                 const SortedBranches& pixels, void* workspace) {
  return visit_weight(args, workspace, [&](auto tag, const WgradArgs& wgrad) {
    using Tile = typename decltype(tag)::Type;
    const cudaError_t status = launch_wgrad_gemm<Tile>(context, wgrad, BranchPixels{args, pixels});
    if (status != cudaSuccess) return status;
    return launch_wgrad_reduce<typename Tile::Element>(context, wgrad, args.output);
  });
}

}  // namespace perfconv::cuda
