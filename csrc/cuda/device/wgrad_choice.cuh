// The tiles that the weight gradient is compiled for, how its rows are cut, and its launch.
#pragma once

#include "cuda/device/wgrad_gemm.cuh"

namespace perfconv::cuda {

// 64 products for each element that a warp loads.
template <class T>
using WideOuter = WgradTile<T, Multiply::kTensorCores, 128, 128, 2, 4, 3>;
// At most 64 input or output channels.
template <class T>
using NarrowOuter = WgradTile<T, Multiply::kTensorCores, 64, 64, 2, 2, 4>;
// Float32 exactly.
using WideFloatOuter = WgradTile<float, Multiply::kFloat, 128, 128, 4, 2, 3>;
using NarrowFloatOuter = WgradTile<float, Multiply::kFloat, 64, 64, 2, 2, 4>;

// Blocks that fill any device, and rows that are worth a slice. Constants, so that sums have the
// same order on every device.
constexpr int64_t kWantedBlocks = 512;
constexpr int64_t kSliceRows = 512;
constexpr int64_t kMostSlices = 64;

inline int slice_count(int64_t tiles, int64_t most_rows) {
  const int64_t wanted = std::min(kWantedBlocks / std::max<int64_t>(1, tiles), kMostSlices);
  return static_cast<int>(std::max<int64_t>(1, std::min(wanted, most_rows / kSliceRows)));
}

template <class Tile>
struct OuterTag {
  using Type = Tile;
};

template <class T, class Function>
auto visit_outer_tile(const WgradArgs& args, Function function) {
  if (args.outputs <= 64 || args.inputs <= 64) return function(OuterTag<NarrowOuter<T>>());
  return function(OuterTag<WideOuter<T>>());
}

// Calls function(OuterTag<Tile>()) with the tile of a weight.
template <class Function>
auto visit_wgrad_tile(const WgradArgs& args, StorageType storage, bool allow_tf32,
                      Function function) {
  switch (storage) {
    case StorageType::kBFloat16:
      return visit_outer_tile<__nv_bfloat16>(args, function);
    case StorageType::kHalf:
      return visit_outer_tile<__half>(args, function);
    case StorageType::kFloat:
    case StorageType::kDouble:  // refused by the planner
      break;
  }
  if (allow_tf32) return visit_outer_tile<float>(args, function);
  if (args.outputs <= 64 || args.inputs <= 64) return function(OuterTag<NarrowFloatOuter>());
  return function(OuterTag<WideFloatOuter>());
}

template <class Tile>
int64_t wgrad_tiles(const WgradArgs& args) {
  return ceil_div(args.outputs, Tile::kOut) * ceil_div(args.inputs, Tile::kIn) * args.taps() *
         args.groups;
}

inline int64_t wgrad_partial_bytes(const WgradArgs& args) {
  return int64_t{args.segments} * args.slices * args.weight_elements() *
         static_cast<int64_t>(sizeof(float));
}

template <class T>
static cudaError_t launch_wgrad_reduce(const LaunchContext& context, const WgradArgs& args,
                                       void* result) {
  const unsigned blocks = grid_blocks(context, args.weight_elements(), kReduceThreads, 8);
  const dim3 grid(blocks, static_cast<unsigned>(args.segments));
  wgrad_reduce_kernel<T>
      <<<grid, kReduceThreads, 0, context.stream>>>(args, static_cast<T*>(result));
  return cudaGetLastError();
}

// Fills args.partials, which has wgrad_partial_bytes; args.slices is set.
template <class Tile, class Rows>
cudaError_t launch_wgrad_gemm(const LaunchContext& context, const WgradArgs& args,
                              const Rows& rows) {
  const auto kernel = wgrad_gemm_kernel<Tile, Rows>;
  const cudaError_t status =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tile::kSharedBytes);
  if (status != cudaSuccess) return status;
  const dim3 grid(static_cast<unsigned>(wgrad_tiles<Tile>(args)),
                  static_cast<unsigned>(args.slices), static_cast<unsigned>(args.segments));
  kernel<<<grid, Tile::kThreads, Tile::kSharedBytes, context.stream>>>(args, rows);
  return cudaGetLastError();
}

}  // namespace perfconv::cuda
