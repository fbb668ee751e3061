// The implicit GEMM: rows gathered by asynchronous copies, multiplied tile by tile, stored at their
// targets with bias, residual and activation. One kernel for the forward pass, dgrad and
// multi-dilation pooling, which differ in their Rows and in the layout of B (gemm_args.cuh).
//
//   grid: persistent, blocks take tiles in turn; the number of rows is read on the device
//   block: Tile::kRows x Tile::kColumns sums of one group; warp: a rectangle of them
//   shared memory: RowTable; ring of kStages x (A, B); the epilogue stages sums in the ring
//   for each tile:  rows -> table, OR of their taps
//     copies of the first kStages - 1 steps start
//     for each step (slab outside, tap inside):
//       wait for its copies, barrier, start those kStages - 1 steps ahead, multiply
//     barrier; 16 rows of sums at a time to shared memory, then 16-byte rows to the output
//   Taps that no row of a tile needs are skipped. Where tiles are fewer than blocks, each is split
//   along its steps into parts; their sums go to the workspace, and finish_kernel adds them in
//   order. finish_kernel also writes the outputs that are no row's target: there, registers of sums
//   are not in the way of its memory accesses.
//
// A Rows policy is a plain struct with
//   int count() const                               rows, read on the device
//   GatheredRow row(const GemmArgs&, int r) const   for r < count()
//   int64_t b_offset(int r) const                   elements to add to B, and
//   int bias_offset(int r) const                    to the bias, for a tile that starts at r
//   template <class T>
//   void write_others(const GemmArgs&) const        outputs that are no row's target
//   kMayAddSums                                     whether GemmArgs::image_sums may be given
// KERNELS.md K-021 has bytes, registers and occupancy.
#pragma once

#include "cuda/device/epilogue.cuh"
#include "cuda/device/gemm_multiply.cuh"
#include "cuda/device/gemm_stage.cuh"
#include "cuda/device/grid.cuh"

namespace perfconv::cuda {

constexpr int kMostParts = 8;
constexpr int kFinishThreads = 256;
constexpr int kFinishBlocks = 3;  // a multiprocessor; with four, one spills

// The tiles of a product, and how many parts each is split into: both known on the device only.
struct TileGrid {
  int rows;
  int row_tiles;
  int column_tiles;  // of one group
  int groups;
  int parts;

  __device__ int64_t tiles() const { return int64_t{row_tiles} * column_tiles * groups; }
};

// The size of a tile, for a kernel that serves all of them.
struct TileShape {
  int rows;
  int columns;
};

template <class Tile>
constexpr TileShape shape_of() {
  return {Tile::kRows, Tile::kColumns};
}

__device__ __forceinline__ TileGrid tile_grid(TileShape tile, const GemmArgs& args, int rows,
                                              int blocks) {
  TileGrid grid;
  grid.rows = rows;
  grid.row_tiles = static_cast<int>(ceil_div(rows, tile.rows));
  grid.column_tiles = static_cast<int>(ceil_div(args.columns, tile.columns));
  grid.groups = args.groups;
  const int64_t tiles = max(grid.tiles(), int64_t{1});
  grid.parts = static_cast<int>(min(max(blocks / tiles, int64_t{1}), int64_t{kMostParts}));
  return grid;
}

// Whether the parts of a tile are added where they are made, by neighbouring blocks of a cluster of
// so many (wgmma_cluster.cuh), or in finish_kernel: a tile's parts are in one cluster if their
// number divides its size. Split tiles are a single part for each block. Only capability 9.0 has
// such launches: elsewhere the question would cost finish_kernel registers.
__device__ __forceinline__ bool is_split_in_cluster([[maybe_unused]] int parts,
                                                    [[maybe_unused]] int cluster) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ == 900
  return parts > 1 && cluster >= parts && cluster % parts == 0;
#else
  return false;
#endif
}

// One block's piece of work: a part of a tile.
struct Unit {
  int row;     // first of the tile
  int column;  // first of the tile, in its group
  int group;
  int part;
};

// Neighbouring units share their rows, which so come from the second-level cache.
__device__ __forceinline__ Unit unit_of(TileShape shape, const TileGrid& grid, int64_t number) {
  const int64_t tile = number / grid.parts;
  const int columns = grid.column_tiles * grid.groups;
  const int place = static_cast<int>(tile % columns);
  return {static_cast<int>(tile / columns) * shape.rows, place % grid.column_tiles * shape.columns,
          place / grid.column_tiles, static_cast<int>(number % grid.parts)};
}

// Fills the table with the rows of a tile; returns the OR of their taps. Ends with a barrier.
template <class Tile, class Rows>
__device__ __forceinline__ uint32_t load_rows(const GemmArgs& args, const Rows& rows, int first,
                                              int count, RowTable<Tile::kRows>& table) {
  uint32_t taps = 0;
  for (int i = static_cast<int>(threadIdx.x); i < Tile::kRows; i += Tile::kThreads) {
    const GatheredRow row = first + i < count ? rows.row(args, first + i) : GatheredRow{};
    table.base[i] = row.base;
    table.scale[i] = row.scale;
    table.taps[i] = row.taps;
    table.target[i] = row.target;
    taps |= row.taps;
  }
  if (threadIdx.x == 0) {
    table.b_offset = rows.b_offset(first);
    table.bias_offset = rows.bias_offset(first);
  }
  taps = __reduce_or_sync(~0u, taps);
  if (threadIdx.x % kWarp == 0) table.warp_taps[threadIdx.x / kWarp] = taps;
  __syncthreads();  // table readable
  taps = 0;
#pragma unroll
  for (int warp = 0; warp < Tile::kThreads / kWarp; ++warp) taps |= table.warp_taps[warp];
  return taps;
}

// Multiplies steps [first, last) of a tile whose rows need `taps`. Ends with a barrier.
template <class Tile>
__device__ __forceinline__ void multiply_steps(const StageLoader<Tile>& loader, uint32_t taps,
                                               int first, int last, unsigned char* ring,
                                               int warp_row, int warp_column, Sums<Tile>& sums) {
  const uint32_t ring_address = ptx::shared_address(ring);
  Walk next(taps, first);  // the step whose copies start next
  const auto load_next = [&](int step, int stage) {
    if (step < last) {
      loader.load(ring_address + stage * Tile::kStageBytes, next.tap(), next.slab());
      next.advance();
    }
    ptx::commit_copies();  // also an empty group, so that counts of groups are counts of steps
  };
#pragma unroll
  for (int ahead = 0; ahead < Tile::kStages - 1; ++ahead) load_next(first + ahead, ahead);
  int stage = 0;
  for (int step = first; step < last; ++step) {
    ptx::wait_copies<Tile::kStages - 2>();
    __syncthreads();  // stage readable by all; the stage multiplied before may be overwritten
    load_next(step + Tile::kStages - 1, stage == 0 ? Tile::kStages - 1 : stage - 1);
    sums.multiply(ring + stage * Tile::kStageBytes, warp_row, warp_column);
    if (++stage == Tile::kStages) stage = 0;
  }
  ptx::wait_copies<0>();
  __syncthreads();  // ring free for the epilogue
}

// Adds kRunSize neighbouring sums to an image of sums. No two blocks of a launch have the same.
template <class T>
__device__ __forceinline__ void add_sums(const float* sums, float* image) {
#pragma unroll
  for (int i = 0; i < kRunSize<T>; i += 4) {
    auto* place = reinterpret_cast<float4*>(image + i);
    const float4 run = *reinterpret_cast<const float4*>(sums + i);
    float4 sum = *place;
    sum.x += run.x, sum.y += run.y, sum.z += run.z, sum.w += run.w;
    *place = sum;
  }
}

// Finishes and stores neighbouring sums of one row, of columns `column` and following of a group.
template <class T, class Rows>
__device__ __forceinline__ void store_columns(const GemmArgs& args, const float* sums, int target,
                                              int group, int column, int bias_offset) {
  const int64_t channel = int64_t{group} * args.columns + column;
  const int64_t offset = int64_t{target} * args.columns * args.groups + channel;
  if constexpr (Rows::kMayAddSums && sizeof(T) < sizeof(float)) {
    if (args.image_sums != nullptr) {
      if (column < args.columns) add_sums<T>(sums, args.image_sums + offset);
      return;
    }
  }
  store_sums<T>(args.epilogue, sums, args.is_vectorised, channel + bias_offset,
                int64_t{group + 1} * args.columns + bias_offset, offset, args.output);
}

// Hands the sums of a warp out, 16 rows at a time: function(row, column, sums) for each run of
// kSize neighbouring columns of the tile.
template <class Tile, class Function>
__device__ __forceinline__ void for_each_run(const Sums<Tile>& sums, unsigned char* ring,
                                             int warp_row, int warp_column, Function function) {
  constexpr int kSize = kRunSize<typename Tile::Element>;
  constexpr int kRuns = Tile::kWarpColumns / kSize;  // of a row
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  auto* staging = reinterpret_cast<float*>(ring + warp * Tile::kSumsBytes);
#pragma unroll 1
  for (int slab = 0; slab < Tile::kWarpRows / Tile::kSlabRows; ++slab) {
    sums.stage_rows(slab, staging);
    __syncwarp();  // staged sums readable
    for (int run = lane; run < Tile::kSlabRows * kRuns; run += kWarp) {
      const int row = run / kRuns;
      const int column = run % kRuns * kSize;
      function(warp_row + slab * Tile::kSlabRows + row, warp_column + column,
               staging + row * Tile::kSumsPitch + column);
    }
    __syncwarp();  // staging may be overwritten
  }
}

// One run of neighbouring sums of a unit, in its row and column of the tile: to the output or,
// where tiles are split, to the unit's partials.
template <class Tile, class Rows>
__device__ __forceinline__ void store_run_of_unit(const GemmArgs& args, const Unit& unit,
                                                  const RowTable<Tile::kRows>& table, bool is_split,
                                                  float* partials, int row, int column,
                                                  const float* run) {
  using T = typename Tile::Element;
  if (!is_split) {
    const int target = table.target[row];
    if (target < 0) return;
    store_columns<T, Rows>(args, run, target, unit.group, unit.column + column, table.bias_offset);
    return;
  }
  float* place = partials + row * Tile::kColumns + column;
#pragma unroll
  for (int i = 0; i < kRunSize<T>; i += 4) {
    *reinterpret_cast<float4*>(place + i) = *reinterpret_cast<const float4*>(run + i);
  }
}

template <class Tile, class Rows>
__device__ __forceinline__ void store_unit(const GemmArgs& args, const TileGrid& grid,
                                           int64_t number, const RowTable<Tile::kRows>& table,
                                           const Sums<Tile>& sums, unsigned char* ring,
                                           int warp_row, int warp_column) {
  const Unit unit = unit_of(shape_of<Tile>(), grid, number);
  float* partials = args.partials + number * Tile::kRows * Tile::kColumns;
  const bool is_split = grid.parts > 1;
  for_each_run<Tile>(sums, ring, warp_row, warp_column, [&](int row, int column, const float* run) {
    store_run_of_unit<Tile, Rows>(args, unit, table, is_split, partials, row, column, run);
  });
}

template <class Tile, class Rows>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kMinBlocks)
    implicit_gemm_kernel(const __grid_constant__ GemmArgs args, const __grid_constant__ Rows rows) {
  using T = typename Tile::Element;
  extern __shared__ __align__(128) unsigned char ring[];
  __shared__ RowTable<Tile::kRows> table;
  __shared__ TileGrid grid;  // read again where needed: registers are for sums
  if (threadIdx.x == 0) {
    grid = tile_grid(shape_of<Tile>(), args, rows.count(), static_cast<int>(gridDim.x));
  }
  __syncthreads();  // grid readable
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warp_row = warp / Tile::kWarpsN * Tile::kWarpRows;
  const int warp_column = warp % Tile::kWarpsN * Tile::kWarpColumns;
  for (int64_t number = blockIdx.x; number < grid.tiles() * grid.parts; number += gridDim.x) {
    const Unit unit = unit_of(shape_of<Tile>(), grid, number);
    const uint32_t taps = load_rows<Tile>(args, rows, unit.row, grid.rows, table);
    const int slabs = static_cast<int>(ceil_div(args.depth, Tile::kDepth));
    const int steps = slabs * __popc(taps);
    const int first = static_cast<int>(int64_t{steps} * unit.part / grid.parts);
    const int last = static_cast<int>(int64_t{steps} * (unit.part + 1) / grid.parts);
    Sums<Tile> sums;
    if (first < last) {
      const auto* a = static_cast<const T*>(args.a) + int64_t{unit.group} * args.depth;
      const auto* b = static_cast<const T*>(args.b) + unit.group * args.b_group + table.b_offset;
      const StageLoader<Tile> loader(args, table, a, b, unit.column);
      multiply_steps<Tile>(loader, taps, first, last, ring, warp_row, warp_column, sums);
    }
    store_unit<Tile, Rows>(args, grid, number, table, sums, ring, warp_row, warp_column);
    __syncthreads();  // table and ring may be overwritten
  }
}

// Writes the outputs that are no row's target; then adds the parts of split tiles in order and
// finishes the sums, where no cluster did. blocks: of implicit_gemm_kernel, cluster: how many of
// them are one. A thread takes one run of neighbouring columns at a time. One kernel for every
// tile: most of it does not depend on the tile. Static, as what launches it: files of sm_90a have
// copies that other devices cannot run, and the linker keeps one of several that are not.
template <class T, class Rows>
static __global__ void __launch_bounds__(kFinishThreads, kFinishBlocks)
    finish_kernel(const __grid_constant__ GemmArgs args, const __grid_constant__ Rows rows,
                  TileShape tile, int blocks, int cluster) {
  constexpr int kSize = kRunSize<T>;
  rows.template write_others<T>(args);
  const int count = rows.count();
  const TileGrid grid = tile_grid(tile, args, count, blocks);
  if (grid.parts == 1 || is_split_in_cluster(grid.parts, cluster)) return;
  const int run_bits = __ffs(tile.columns / kSize) - 1;  // runs of a row: a power of two, as rows
  const int row_bits = __ffs(tile.rows) - 1;
  const int64_t runs = grid.tiles() << (row_bits + run_bits);
  const int64_t threads = int64_t{gridDim.x} * kFinishThreads;
  for (int64_t i = int64_t{blockIdx.x} * kFinishThreads + threadIdx.x; i < runs; i += threads) {
    const int64_t number = (i >> (row_bits + run_bits)) * grid.parts;
    const Unit unit = unit_of(tile, grid, number);
    const int row = static_cast<int>(i >> run_bits) & (tile.rows - 1);
    const int column = (static_cast<int>(i) & ((1 << run_bits) - 1)) * kSize;
    if (unit.row + row >= count) continue;
    const int target = rows.row(args, unit.row + row).target;
    if (target < 0) continue;
    alignas(16) float sums[kSize] = {};
    for (int part = 0; part < grid.parts; ++part) {
      const float* place =
          args.partials + ((number + part) * tile.rows + row) * tile.columns + column;
#pragma unroll
      for (int j = 0; j < kSize; ++j) sums[j] += place[j];
    }
    store_columns<T, Rows>(args, sums, target, unit.group, unit.column + column,
                           rows.bias_offset(unit.row));
  }
}

// Blocks of the persistent grid: what fits onto the device at once, at most one for every part.
// resident: blocks of a multiprocessor.
inline int persistent_blocks(const LaunchContext& context, TileShape tile, const GemmArgs& args,
                             int64_t most_rows, int resident) {
  const int64_t parts = ceil_div(most_rows, tile.rows) * ceil_div(args.columns, tile.columns) *
                        args.groups * kMostParts;
  const int64_t fit = std::max<int64_t>(1, int64_t{context.multiprocessors} * resident);
  return static_cast<int>(std::min(fit, std::max<int64_t>(parts, 1)));
}

// Bytes of GemmArgs::partials of so many blocks.
inline int64_t partial_bytes(TileShape tile, int blocks) {
  return int64_t{blocks} * tile.rows * tile.columns * static_cast<int64_t>(sizeof(float));
}

template <class Tile, class Rows>
cudaError_t gemm_blocks(const LaunchContext& context, const GemmArgs& args, int64_t most_rows,
                        int* blocks) {
  const auto kernel = implicit_gemm_kernel<Tile, Rows>;
  cudaError_t status =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tile::kSharedBytes);
  if (status != cudaSuccess) return status;
  int resident = 0;
  status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, Tile::kThreads,
                                                         Tile::kSharedBytes);
  *blocks = persistent_blocks(context, shape_of<Tile>(), args, most_rows, resident);
  return status;
}

// Bytes of GemmArgs::partials. most_rows: the largest possible count of rows.
template <class Tile, class Rows>
int64_t gemm_workspace(const LaunchContext& context, const GemmArgs& args, int64_t most_rows) {
  int blocks = 0;
  if (gemm_blocks<Tile, Rows>(context, args, most_rows, &blocks) != cudaSuccess) return 0;
  return partial_bytes(shape_of<Tile>(), blocks);
}

// finish_kernel, after a kernel of so many blocks, in clusters of so many.
template <class T, class Rows>
static cudaError_t launch_finish(const LaunchContext& context, const GemmArgs& args,
                                 const Rows& rows, TileShape tile, int64_t most_rows, int blocks,
                                 int cluster = 1) {
  const unsigned finishing = grid_blocks(context, most_rows * args.columns * args.groups,
                                         kFinishThreads * kChunkBytes, kFinishBlocks);
  finish_kernel<T, Rows>
      <<<finishing, kFinishThreads, 0, context.stream>>>(args, rows, tile, blocks, cluster);
  return cudaGetLastError();
}

template <class Tile, class Rows>
cudaError_t launch_implicit_gemm(const LaunchContext& context, const GemmArgs& args,
                                 const Rows& rows, int64_t most_rows) {
  if (most_rows == 0 || args.columns == 0) return cudaSuccess;
  int blocks = 0;
  const cudaError_t status = gemm_blocks<Tile, Rows>(context, args, most_rows, &blocks);
  if (status != cudaSuccess) return status;
  implicit_gemm_kernel<Tile, Rows>
      <<<blocks, Tile::kThreads, Tile::kSharedBytes, context.stream>>>(args, rows);
  return launch_finish<typename Tile::Element>(context, args, rows, shape_of<Tile>(), most_rows,
                                               blocks);
}

}  // namespace perfconv::cuda
