// Implicit GEMM of the input gradient: M = input pixels that active outputs read, N = input
// channels of a group, K = taps x output channels of a group.
//
// The kernel is device/implicit_gemm.cuh. Its rows come sorted by tap pattern (counting_sort.cu,
// tap_patterns.cu), and a tile skips the taps that none of its rows has: what it multiplies beyond
// the exact MACs is 1.05 to 1.5 times them (K-020), with every sum in one order and written once.
// The branches of a multi-dilation convolution take turns in adding to an image of sums.
#include "cuda/device/dgrad_rows.cuh"
#include "cuda/device/gemm_choice.cuh"
#include "cuda/kernels/launch.h"

namespace perfconv::cuda {
namespace {

constexpr auto kLayout = BLayout::kColumnContiguous;

GemmArgs gemm_args(const GradArgs& args) {
  const ConvGeometry& g = args.geometry;
  GemmArgs gemm;
  gemm.a = args.grad_output;
  gemm.a_pitch = g.out_channels;
  gemm.b = args.operand;
  gemm.depth = static_cast<int>(g.group_out_channels());
  gemm.columns = static_cast<int>(g.group_in_channels());
  gemm.groups = static_cast<int>(g.groups);
  gemm.taps = static_cast<int>(g.taps());
  gemm.b_column = 1;
  gemm.b_tap = gemm.columns;
  gemm.b_depth = g.taps() * gemm.columns;
  gemm.b_group = gemm.b_depth * gemm.depth;
  for (int tap = 0; tap < gemm.taps; ++tap) {
    const int64_t row = tap / g.kernel_width * g.dilation_h / g.stride_h;
    const int64_t column = tap % g.kernel_width * g.dilation_w / g.stride_w;
    gemm.delta[tap] = static_cast<int32_t>(row * g.out_width + column);
  }
  gemm.output = args.result;
  gemm.image_sums = args.sums;
  if (args.sums != nullptr && args.storage == StorageType::kFloat) {
    gemm.output = args.sums;
    gemm.epilogue.residual = args.sums;
  }
  gemm.is_vectorised = is_vectorised(args.storage, gemm);
  gemm.partials = static_cast<float*>(args.workspace);
  return gemm;
}

template <class Function>
auto visit_tile(const LaunchContext& context, const GradArgs& args, const GemmArgs& gemm,
                Function function) {
  return visit_gemm_tile<kLayout>(context, gemm, args.storage, args.allow_tf32,
                                  args.geometry.in_pixels(), function);
}

}  // namespace

int64_t dgrad_implicit_workspace(const LaunchContext& context, const GradArgs& args) {
  const GemmArgs gemm = gemm_args(args);
  return visit_tile(context, args, gemm, [&](auto tag) {
    using Tile = typename decltype(tag)::Type;
    return gemm_workspace<Tile, DgradRows>(context, gemm, args.geometry.in_pixels());
  });
}

cudaError_t launch_dgrad_implicit(const LaunchContext& context, const GradArgs& args,
                                  const SortedPixels& pixels) {
  const GemmArgs gemm = gemm_args(args);
  const DgradRows rows{args.geometry, pixels};
  return visit_tile(context, args, gemm, [&](auto tag) {
    using Tile = typename decltype(tag)::Type;
    return launch_implicit_gemm<Tile>(context, gemm, rows, args.geometry.in_pixels());
  });
}

}  // namespace perfconv::cuda
