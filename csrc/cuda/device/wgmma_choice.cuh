// The tiles that the warp-specialised implicit GEMM is compiled for, and the choice among them.
#pragma once

#include "cuda/device/gemm_choice.cuh"
#include "cuda/device/wgmma_gemm.cuh"

namespace perfconv::cuda {

// Wide layers: of each step, 64 deep (tf32: 32), every row of A serves 256 columns, which halves
// what is gathered a multiplication; 128 sums a thread leave room for one block only.
template <class T, BLayout layout>
using WgmmaWideTile = WgmmaTile<T, layout, 256, 4, 1, 56, 224>;
// Up to 128 columns, or too few rows for wide tiles to fill the device: six stages in flight.
template <class T, BLayout layout>
using WgmmaMiddleTile = WgmmaTile<T, layout, 128, 6, 1, 56, 224>;
// Up to 64 columns: no column is wasted; two blocks, one of which multiplies while the other
// stores.
template <class T, BLayout layout>
using WgmmaNarrowTile = WgmmaTile<T, layout, 64, 3, 2, 56, 88>;

// Calls function(TileTag<Tile>()); most_rows is the largest possible count of rows.
template <class T, BLayout layout, class Function>
auto visit_wgmma_columns(const LaunchContext& context, const GemmArgs& args, int64_t most_rows,
                         Function function) {
  const int64_t wide_tiles = ceil_div(most_rows, 128) * ceil_div(args.columns, 256) * args.groups;
  if (args.columns <= 64) return function(TileTag<WgmmaNarrowTile<T, layout>>());
  if (args.columns <= 128 || wide_tiles < context.multiprocessors) {
    return function(TileTag<WgmmaMiddleTile<T, layout>>());
  }
  return function(TileTag<WgmmaWideTile<T, layout>>());
}

template <BLayout layout, class Function>
auto visit_wgmma_tile(const LaunchContext& context, const GemmArgs& args, StorageType storage,
                      int64_t most_rows, Function function) {
  if constexpr (layout == BLayout::kDepthContiguous) {
    if (storage == StorageType::kFloat) {
      return visit_wgmma_columns<float, layout>(context, args, most_rows, function);
    }
  }
  return storage == StorageType::kBFloat16  // the planner refuses the rest
             ? visit_wgmma_columns<__nv_bfloat16, layout>(context, args, most_rows, function)
             : visit_wgmma_columns<__half, layout>(context, args, most_rows, function);
}

}  // namespace perfconv::cuda
