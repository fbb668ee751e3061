// Multi-dilation convolution by tiles: one launch for all branches, device/implicit_gemm.cuh with
// the rows of device/branch_rows.cuh. The weight gradient takes the pixels of each branch as a
// segment of device/wgrad_gemm.cuh.
#include "cuda/device/branch_gemm.cuh"
#include "cuda/device/wgrad_choice.cuh"
#include "cuda/kernels/launch.h"

namespace perfconv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerMultiprocessor = 8;

// Values that are no branch get the key after the last one.
__global__ void __launch_bounds__(kThreads)
    branch_key_kernel(const int32_t* __restrict__ choice, int branches, int64_t pixels,
                      uint32_t* __restrict__ keys) {
  const int64_t threads = int64_t{gridDim.x} * kThreads;
  for (int64_t p = int64_t{blockIdx.x} * kThreads + threadIdx.x; p < pixels; p += threads) {
    const auto branch = static_cast<uint32_t>(choice[p]);  // -1 is large
    keys[p] = branch < static_cast<uint32_t>(branches) ? branch : static_cast<uint32_t>(branches);
  }
}

template <class Function>
auto visit_tile(const LaunchContext& context, const MultiDilationArgs& args, const GemmArgs& gemm,
                Function function) {
  return visit_gemm_tile<kBranchLayout>(context, gemm, args.storage, args.allow_tf32,
                                        args.geometry.out_pixels(), function);
}

struct BranchPixels {
  MultiDilationArgs args;
  SortedBranches sorted;

  __device__ RowRange range(int segment) const {
    const int begin = sorted.starts[segment];
    return {begin, args.dilations[segment] == 0 ? begin : sorted.starts[segment + 1]};
  }

  __device__ PixelPair pixels(int r, int segment, int kh, int kw) const {
    const ConvGeometry& g = args.geometry;
    const int32_t position = sorted.sorted[r];
    const auto half = static_cast<int>(g.kernel_height) / 2;
    const auto width = static_cast<uint32_t>(g.in_width);
    const auto height = static_cast<uint32_t>(g.in_height);
    const uint32_t line = static_cast<uint32_t>(position) / width;
    const int64_t dilation = args.dilations[segment];
    const int64_t rows = (kh - half) * dilation;
    const int64_t columns = (kw - half) * dilation;
    const int64_t y = line % height + rows;
    const int64_t x = static_cast<uint32_t>(position) - line * width + columns;
    if (y < 0 || y >= g.in_height || x < 0 || x >= g.in_width) return {-1, -1};
    return {position, static_cast<int32_t>(position + rows * g.in_width + columns)};
  }
};

WgradArgs wgrad_args(const MultiDilationArgs& args, float* partials) {
  const ConvGeometry& g = args.geometry;
  WgradArgs wgrad;
  wgrad.grad_output = args.grad_output;
  wgrad.input = args.input;
  wgrad.partials = partials;
  wgrad.outputs = static_cast<int>(g.out_channels);
  wgrad.inputs = static_cast<int>(g.in_channels);
  wgrad.kernel_height = static_cast<int>(g.kernel_height);
  wgrad.kernel_width = static_cast<int>(g.kernel_width);
  wgrad.segments = args.branches;
  return wgrad;
}

template <class Function>
auto visit_weight(const MultiDilationArgs& args, float* partials, Function function) {
  WgradArgs wgrad = wgrad_args(args, partials);
  return visit_wgrad_tile(wgrad, args.storage, args.allow_tf32, [&](auto tag) {
    using Tile = typename decltype(tag)::Type;
    wgrad.slices = slice_count(wgrad_tiles<Tile>(wgrad) * wgrad.segments,
                               args.geometry.out_pixels() / wgrad.segments);
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
  branch_key_kernel<<<blocks, kThreads, 0, context.stream>>>(args.choice, args.branches, pixels,
                                                             keys);
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
  return visit_weight(args, static_cast<float*>(workspace), [&](auto tag, const WgradArgs& wgrad) {
    using Tile = typename decltype(tag)::Type;
    const cudaError_t status = launch_wgrad_gemm<Tile>(context, wgrad, BranchPixels{args, pixels});
    if (status != cudaSuccess) return status;
    WgradArgs sum = wgrad;
    if (args.weight_pitch == 0) {  // one weight: the branches are more slices
      sum.slices *= sum.segments;
      sum.segments = 1;
    }
    return launch_wgrad_reduce<typename Tile::Element>(context, sum, args.output);
  });
}

}  // namespace perfconv::cuda
