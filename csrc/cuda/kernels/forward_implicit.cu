// Implicit GEMM of the forward pass: M = active pixels, N = output channels of a group, K = taps x
// input channels of a group. The kernel is device/implicit_gemm.cuh; its tiles are in
// gemm_choice.cuh.
#include "cuda/device/forward_rows.cuh"
#include "cuda/device/gemm_choice.cuh"
#include "cuda/kernels/launch.h"

namespace perfconv::cuda {
namespace {

constexpr auto kLayout = BLayout::kDepthContiguous;

GemmArgs gemm_args(const ForwardArgs& args) {
  const ConvGeometry& g = args.geometry;
  GemmArgs gemm;
  gemm.a = args.input;
  gemm.a_pitch = g.in_channels;
  gemm.b = args.weight;
  gemm.depth = static_cast<int>(g.group_in_channels());
  gemm.columns = static_cast<int>(g.group_out_channels());
  gemm.groups = static_cast<int>(g.groups);
  gemm.taps = static_cast<int>(g.taps());
  gemm.b_depth = 1;
  gemm.b_tap = gemm.depth;
  gemm.b_column = g.taps() * gemm.depth;
  gemm.b_group = gemm.b_column * gemm.columns;
  for (int tap = 0; tap < gemm.taps; ++tap) {
    const int64_t row = tap / g.kernel_width * g.dilation_h;
    const int64_t column = tap % g.kernel_width * g.dilation_w;
    gemm.delta[tap] = static_cast<int32_t>(row * g.in_width + column);
  }
  gemm.epilogue = args.epilogue;
  gemm.output = args.output;
  gemm.is_vectorised = is_vectorised(args.storage, gemm);
  gemm.partials = static_cast<float*>(args.workspace);
  return gemm;
}

bool is_pointwise(const ConvGeometry& g) {
  return g.taps() == 1 && g.stride_h == 1 && g.stride_w == 1 && g.pad_top == 0 && g.pad_left == 0;
}

template <class Function>
auto visit_tile(const LaunchContext& context, const ForwardArgs& args, const GemmArgs& gemm,
                Function function) {
  return visit_gemm_tile<kLayout>(context, gemm, args.storage, args.allow_tf32,
                                  args.active.capacity, function);
}

}  // namespace

int64_t forward_implicit_workspace(const LaunchContext& context, const ForwardArgs& args) {
  const GemmArgs gemm = gemm_args(args);
  return visit_tile(context, args, gemm, [&](auto tag) {
    using Tile = typename decltype(tag)::Type;
    return gemm_workspace<Tile, ForwardRows>(context, gemm, args.active.capacity);
  });
}

cudaError_t launch_forward_implicit(const LaunchContext& context, const ForwardArgs& args) {
  const ForwardRows rows{args.geometry, args.mask, args.active, is_pointwise(args.geometry)};
  const GemmArgs gemm = gemm_args(args);
  return visit_tile(context, args, gemm, [&](auto tag) {
    using Tile = typename decltype(tag)::Type;
    return launch_implicit_gemm<Tile>(context, gemm, rows, args.active.capacity);
  });
}

}  // namespace perfconv::cuda
