// The tiles that the implicit GEMM is compiled for, and the choice among them.
#pragma once

#include "cuda/device/implicit_gemm.cuh"

namespace perfconv::cuda {

// Large products: 64 products for each element that a warp loads; two blocks a multiprocessor.
template <class T, BLayout layout>
using WideTile = GemmTile<T, Multiply::kTensorCores, layout, 128, 128, 2, 4, 4>;
// At most 64 output channels: no column is wasted.
template <class T, BLayout layout>
using NarrowTile = GemmTile<T, Multiply::kTensorCores, layout, 128, 64, 4, 2, 4>;
// Few rows: half as many of them are wasted at the end of the list.
template <class T, BLayout layout>
using SmallTile = GemmTile<T, Multiply::kTensorCores, layout, 64, 64, 2, 2, 4>;
// Float32 exactly: 64 sums a thread; the multiply-adds, not the tile, are the limit.
template <BLayout layout>
using FloatTile = GemmTile<float, Multiply::kFloat, layout, 128, 64, 2, 2, 3>;

template <class Tile>
struct TileTag {
  using Type = Tile;
};

// Calls function(TileTag<Tile>()) with the tile of a product of tensor cores.
template <class T, BLayout layout, class Function>
auto visit_tensor_core_tile(const LaunchContext& context, const GemmArgs& args, int64_t most_rows,
                            Function function) {
  const int64_t wide_tiles = ceil_div(most_rows, 128) * ceil_div(args.columns, 128) * args.groups;
  if (wide_tiles < context.multiprocessors) return function(TileTag<SmallTile<T, layout>>());
  if (args.columns <= 64) return function(TileTag<NarrowTile<T, layout>>());
  return function(TileTag<WideTile<T, layout>>());
}

// The same for any product; most_rows is the largest possible count of rows.
template <BLayout layout, class Function>
auto visit_gemm_tile(const LaunchContext& context, const GemmArgs& args, StorageType storage,
                     bool allow_tf32, int64_t most_rows, Function function) {
  switch (storage) {
    case StorageType::kBFloat16:
      return visit_tensor_core_tile<__nv_bfloat16, layout>(context, args, most_rows, function);
    case StorageType::kHalf:
      return visit_tensor_core_tile<__half, layout>(context, args, most_rows, function);
    case StorageType::kFloat:
    case StorageType::kDouble:  // refused by the planner
      break;
  }
  return allow_tf32 ? visit_tensor_core_tile<float, layout>(context, args, most_rows, function)
                    : function(TileTag<FloatTile<layout>>());
}

// Whether rows of the output, and what is read beside it, allow accesses of 16 bytes.
inline bool is_vectorised(StorageType storage, const GemmArgs& args) {
  return storage == StorageType::kFloat
             ? is_vector_image<float>(args.columns, args.epilogue, args.output)
             : is_vector_image<__half>(args.columns, args.epilogue, args.output);
}

}  // namespace perfconv::cuda
