// Weight gradient over the active pixels by tiles: device/wgrad_gemm.cuh with the pixels of the
// active list as its rows.
#include "cuda/device/receptive_field.cuh"
#include "cuda/device/wgrad_choice.cuh"
#include "cuda/kernels/launch.h"

namespace perfconv::cuda {
namespace {

struct ActiveRows {
  ConvGeometry geometry;
  ActiveArgs active;

  __device__ RowRange range(int) const { return {0, *active.count}; }

  __device__ PixelPair pixels(int r, int, int kh, int kw) const {
    const ConvGeometry& g = geometry;
    const int32_t position = active.idx[r];
    const Receptive field = receptive_field(g, position);
    const int64_t y = field.y + kh * g.dilation_h;
    const int64_t x = field.x + kw * g.dilation_w;
    if (y < 0 || y >= g.in_height || x < 0 || x >= g.in_width) return {-1, -1};
    return {position, static_cast<int32_t>((field.image * g.in_height + y) * g.in_width + x)};
  }
};

WgradArgs wgrad_args(const GradArgs& args) {
  const ConvGeometry& g = args.geometry;
  WgradArgs wgrad;
  wgrad.grad_output = args.grad_output;
  wgrad.input = args.operand;
  wgrad.partials = static_cast<float*>(args.workspace);
  wgrad.outputs = static_cast<int>(g.group_out_channels());
  wgrad.inputs = static_cast<int>(g.group_in_channels());
  wgrad.groups = static_cast<int>(g.groups);
  wgrad.kernel_height = static_cast<int>(g.kernel_height);
  wgrad.kernel_width = static_cast<int>(g.kernel_width);
  return wgrad;
}

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
