// The implicit GEMM of sm_90a: the product, rows and epilogue of implicit_gemm.cuh for the forward
// pass, dgrad and multi-dilation, with one warpgroup that copies and two that multiply (wgmma),
// each at its own pace.
//
//   grid, tiles, parts of tiles, workspace, finish_kernel: as in implicit_gemm.cuh; few tiles have
//   clusters of blocks, which may add the parts (wgmma_cluster.cuh)
//   block: kRows x kColumns sums of one group; a multiplying warpgroup 64 rows of them
//   shared memory: ring of kStages x (A, B); staging of sums; two row tables; barriers
//   copying warpgroup, for each tile:
//     wait for a free table, rows -> table
//     for each step (slab outside, tap inside):
//       wait for a free stage, start its copies; they arrive at its `full` barrier when done
//   multiplying warpgroups, for each tile:
//     wait for the table
//     for each step: wait for `full`, start four multiplications; when those of the step before are
//       done, its stage is `empty`
//     sums -> staging -> output, 16 rows x 32 columns a warp at a time; the table is free
//   The copies run ahead of the multiplications by up to kStages steps, into the next tile too: its
//   first stages arrive while the sums of this one are stored.
//
// Copies of A are cp.async: Hopper's bulk copies do not gather rows. Those are writes of the
// generic proxy, wgmma reads through the async one: a fence stands behind every wait for `full`.
// B of the forward pass and of multi-dilation comes from a pack (packed_weight.cuh) where there is
// one that holds the weight: one bulk copy a step, by one thread. Without a pack, and in dgrad,
// whose weights change from call to call, it is copied like A.
// KERNELS.md K-050 and K-075 have bytes, registers and what was predicted.
#pragma once

#include "cuda/device/implicit_gemm.cuh"
#include "cuda/device/packed_weight.cuh"
#include "cuda/device/wgmma_cluster.cuh"
#include "cuda/device/wgmma_pipeline.cuh"
#include "cuda/device/wgmma_tf32.cuh"
#include "cuda/device/wgmma_tile.cuh"

namespace perfconv::cuda {

constexpr int kTables = 2;  // one is read by the epilogue while the next tile's is filled

template <class Tile>
struct WgmmaShared {
  alignas(1024) unsigned char ring[Tile::kStages * Tile::kStageBytes];
  alignas(16) float staging[Tile::kMultiplyingWarps][16 * Tile::kStagingPitch];
  RowTable<Tile::kRows> tables[kTables];
  uint64_t full[Tile::kStages];
  uint64_t empty[Tile::kStages];
  uint64_t table_full[kTables];
  uint64_t table_empty[kTables];
  TileGrid grid;
  bool has_pack;  // the pack is read instead of the weight
};

// The steps of a unit.
struct StepRange {
  int first;
  int last;
};

template <class Tile>
__device__ __forceinline__ StepRange steps_of(const GemmArgs& args, const TileGrid& grid,
                                              const Unit& unit, uint32_t taps) {
  const int steps = static_cast<int>(ceil_div(args.depth, Tile::kDepth)) * __popc(taps);
  return {static_cast<int>(int64_t{steps} * unit.part / grid.parts),
          static_cast<int>(int64_t{steps} * (unit.part + 1) / grid.parts)};
}

template <int kRows>
__device__ __forceinline__ uint32_t taps_of(const RowTable<kRows>& table) {
  uint32_t taps = 0;
#pragma unroll
  for (int warp = 0; warp < kWarpgroup / kWarp; ++warp) taps |= table.warp_taps[warp];
  return taps;
}

// ---- copying
// --------------------------------------------------------------------------------------

// A copying thread's share of every stage of one tile: one chunk of every 16th row.
template <class Tile>
class WgmmaLoader {
 public:
  using T = typename Tile::Element;

  // b: the matrix of the tile, packed if that is said.
  __device__ WgmmaLoader(const GemmArgs& args, const RowTable<Tile::kRows>& table, const T* a,
                         const T* b, int column, bool is_packed)
      : args_(args),
        rows_(table, first_row()),
        a_(a),
        b_(b),
        columns_left_(args.columns - column),
        is_packed_(is_packed) {
    const bool has_columns = Tile::kBLayout == BLayout::kColumnContiguous;
    const int64_t pitch = is_packed ? kPackSide : has_columns ? 1 : args.b_column;
    b_ += column * pitch;  // of a pack whole blocks: tiles begin at multiples of kPackSide
  }

  // Starts the copies of one slab of one tap. stage: the shared address of A, then B; full: of the
  // barrier at which bulk copies count.
  __device__ void load(uint32_t stage, uint32_t full, int tap, int slab) const {
    const uint32_t b_tile = stage + Tile::kABytes;
    if (Tile::kTakesPack && is_packed_) {
      if (threadIdx.x == 0) load_b_packed(b_tile, full, tap, slab);
    } else if constexpr (Tile::kBLayout == BLayout::kDepthContiguous) {
      load_b_by_column(b_tile, tap, slab);
    } else {
      load_b_by_depth(b_tile, tap, slab);
    }
    load_a(stage, tap, slab);
  }

 private:
  static constexpr int kRowStep = kWarpgroup / Tile::kRowChunks;
  static_assert(kRowStep % 8 == 0, "the chunks of a thread are swizzled alike");

  __device__ static uint32_t first_row() { return threadIdx.x / Tile::kRowChunks; }
  __device__ static uint32_t chunk() { return threadIdx.x % Tile::kRowChunks; }

  __device__ void load_a(uint32_t tile, int tap, int slab) const {
    const int depth = slab * Tile::kDepth + static_cast<int>(chunk()) * Tile::kChunk;
    rows_.template copy<Tile::kRowBytes>(args_, a_, tap, depth, true,
                                         tile + swizzled(first_row(), chunk()));
  }

  __device__ void load_b_packed(uint32_t tile, uint32_t full, int tap, int slab) const {
    const uint32_t block = packed_step(args_.columns, args_.taps, slab, tap);
    ptx::expect_bytes(full, Tile::kBBytes);
    ptx::copy_bulk_async(tile, b_ + block * kPackBlock, Tile::kBBytes, full);
  }

  __device__ void load_b_by_column(uint32_t tile, int tap, int slab) const {
    const int depth = slab * Tile::kDepth + static_cast<int>(chunk()) * Tile::kChunk;
    const uint32_t place = tile + swizzled(first_row(), chunk());
    const T* source = b_ + tap * args_.b_tap + first_row() * args_.b_column + depth;
#pragma unroll
    for (int i = 0; i < Tile::kColumns / kRowStep; ++i) {
      const bool is_valid = static_cast<int>(first_row()) + i * kRowStep < columns_left_;
      ptx::copy_16_async(place + i * kRowStep * Tile::kRowBytes, is_valid ? source : b_, is_valid);
      source += kRowStep * args_.b_column;
    }
  }

  __device__ void load_b_by_depth(uint32_t tile, int tap, int slab) const {
    const uint32_t place = tile + swizzled(first_row(), chunk());
    const T* row = b_ + tap * args_.b_tap +
                   (slab * Tile::kDepth + static_cast<int>(first_row())) * args_.b_depth +
                   chunk() * Tile::kChunk;
#pragma unroll
    for (int i = 0; i < Tile::kDepth / kRowStep; ++i) {
#pragma unroll
      for (int block = 0; block < Tile::kColumns / Tile::kBlockColumns; ++block) {
        const int column = block * Tile::kBlockColumns;
        const bool is_valid = column + static_cast<int>(chunk()) * Tile::kChunk < columns_left_;
        ptx::copy_16_async(place + block * Tile::kBlockBytes + i * kRowStep * Tile::kRowBytes,
                           is_valid ? row + column : b_, is_valid);
      }
      row += kRowStep * args_.b_depth;
    }
  }

  const GemmArgs& args_;
  GatheredRows<T, Tile::kRows / kRowStep, kRowStep> rows_;
  const T* a_;
  const T* b_;  // of the tile's first column
  int columns_left_;
  bool is_packed_;
};

// The weights of a tile: of its group, or of its branch.
template <class T>
__device__ __forceinline__ const T* weights_of(const GemmArgs& args, const Unit& unit,
                                               int64_t b_offset, bool is_packed) {
  if (!is_packed) return static_cast<const T*>(args.b) + unit.group * args.b_group + b_offset;
  const uint32_t branch = static_cast<uint32_t>(b_offset) / static_cast<uint32_t>(args.b_group);
  return static_cast<const T*>(args.b_packed.blocks) + (unit.group + branch) * args.b_packed.pitch;
}

// Fills a table with the rows of a tile; ends with a barrier of the copying warpgroup.
template <class Tile, class Rows>
__device__ __forceinline__ void fill_table(const GemmArgs& args, const Rows& rows, int first,
                                           int count, RowTable<Tile::kRows>& table) {
  static_assert(Tile::kRows == kWarpgroup, "a row for each thread");
  const auto i = static_cast<int>(threadIdx.x);
  const GatheredRow row = first + i < count ? rows.row(args, first + i) : GatheredRow{};
  table.base[i] = row.base;
  table.scale[i] = row.scale;
  table.taps[i] = row.taps;
  table.target[i] = row.target;
  const uint32_t taps = __reduce_or_sync(~0u, row.taps);
  if (i % kWarp == 0) table.warp_taps[i / kWarp] = taps;
  if (i == 0) {
    table.b_offset = rows.b_offset(first);
    table.bias_offset = rows.bias_offset(first);
  }
  ptx::sync_threads<1, kWarpgroup>();  // table readable
}

template <class Tile, class Rows>
__device__ __forceinline__ void copy_tiles(const GemmArgs& args, const Rows& rows,
                                           WgmmaShared<Tile>& shared) {
  using T = typename Tile::Element;
  const TileGrid& grid = shared.grid;
  const bool is_packed = Tile::kTakesPack && shared.has_pack;
  const uint32_t ring = ptx::shared_address(shared.ring);
  const uint32_t full = ptx::shared_address(shared.full);
  const uint32_t empty = ptx::shared_address(shared.empty);
  RingPlace<Tile::kStages> stage;
  RingPlace<kTables> slot;
  for (int64_t number = blockIdx.x; number < grid.tiles() * grid.parts; number += gridDim.x) {
    const Unit unit = unit_of(shape_of<Tile>(), grid, number);
    RowTable<Tile::kRows>& table = shared.tables[slot.place];
    ptx::wait_for_phase(ptx::shared_address(&shared.table_empty[slot.place]), slot.parity ^ 1);
    fill_table<Tile>(args, rows, unit.row, grid.rows, table);
    ptx::arrive(ptx::shared_address(&shared.table_full[slot.place]));
    slot.advance();
    const uint32_t taps = taps_of(table);
    const StepRange steps = steps_of<Tile>(args, grid, unit, taps);
    if (steps.first == steps.last) continue;
    const auto* a = static_cast<const T*>(args.a) + int64_t{unit.group} * args.depth;
    const T* b = weights_of<T>(args, unit, table.b_offset, is_packed);
    const WgmmaLoader<Tile> loader(args, table, a, b, unit.column, is_packed);
    Walk next(taps, steps.first);
    for (int step = steps.first; step < steps.last; ++step) {
      ptx::wait_for_phase(empty + stage.place * 8, stage.parity ^ 1);
      loader.load(ring + stage.place * Tile::kStageBytes, full + stage.place * 8, next.tap(),
                  next.slab());
      ptx::arrive_after_copies(full + stage.place * 8);
      next.advance();
      stage.advance();
    }
  }
  if (adds_in_cluster<Tile>(grid)) {
    ptx::sync_cluster();  // all threads count: parts are there
    ptx::sync_cluster();  // and have been read
  }
}

// ---- multiplying
// ----------------------------------------------------------------------------------

// Hands the sums of a warp, 16 rows of the tile, out: function(row, column, sums) for each run of
// neighbouring columns, rows counted from the warp's first.
template <class Tile, class Function>
__device__ __forceinline__ void for_each_staged_run(const float (&sums)[Tile::kSums],
                                                    float* staging, Function function) {
  constexpr int kSize = kRunSize<typename Tile::Element>;
  constexpr int kRuns = Tile::kStagedColumns / kSize;  // of a row
  constexpr int kGroups = Tile::kColumns / Tile::kStagedColumns;
  constexpr int kGroupSums = Tile::kSums / kGroups;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  float* place = staging + lane / 4 * Tile::kStagingPitch + lane % 4 * 2;
#pragma unroll 1
  for (int group = 0; group < kGroups; ++group) {
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {  // a constant index: the sums stay in registers
      if (i != group) continue;
#pragma unroll
      for (int j = 0; j < kGroupSums / 4; ++j) {
        const float* values = sums + i * kGroupSums + 4 * j;
        *reinterpret_cast<float2*>(place + 8 * j) = make_float2(values[0], values[1]);
        *reinterpret_cast<float2*>(place + 8 * Tile::kStagingPitch + 8 * j) =
            make_float2(values[2], values[3]);
      }
    }
    __syncwarp();  // staged sums readable
    for (int run = lane; run < 16 * kRuns; run += kWarp) {
      const int row = run / kRuns;
      const int column = run % kRuns * kSize;
      function(row, group * Tile::kStagedColumns + column,
               staging + row * Tile::kStagingPitch + column);
    }
    __syncwarp();  // staging may be overwritten
  }
}

template <class Tile, class Rows>
__device__ __forceinline__ void multiply_tiles(const GemmArgs& args, WgmmaShared<Tile>& shared) {
  const TileGrid& grid = shared.grid;
  const auto warp = static_cast<int>(threadIdx.x - kWarpgroup) / kWarp;
  RingPlace<Tile::kStages> stage;
  RingPlace<kTables> slot;
  const bool is_in_cluster = adds_in_cluster<Tile>(grid);
  for (int64_t number = blockIdx.x; number < grid.tiles() * grid.parts; number += gridDim.x) {
    const Unit unit = unit_of(shape_of<Tile>(), grid, number);
    const RowTable<Tile::kRows>& table = shared.tables[slot.place];
    ptx::wait_for_phase(ptx::shared_address(&shared.table_full[slot.place]), slot.parity);
    const StepRange steps = steps_of<Tile>(args, grid, unit, taps_of(table));
    float sums[Tile::kSums] = {};
    const uint32_t first_row = warp / 4 * 64 * Tile::kRowBytes;
    if constexpr (sizeof(typename Tile::Element) == 4) {
      multiply_tf32_stages<Tile>(steps.last - steps.first, first_row, shared, stage, sums);
    } else {
      multiply_stages<Tile>(steps.last - steps.first, first_row, shared, stage, sums);
    }
    if (is_in_cluster) {
      keep_part<Tile>(sums, warp, shared);
      break;  // the only one of this block
    }
    float* partials = args.partials + number * Tile::kRows * Tile::kColumns;
    const bool is_split = grid.parts > 1;
    const auto store = [&](int row, int column, const float* run) {
      store_run_of_unit<Tile, Rows>(args, unit, table, is_split, partials, warp * 16 + row, column,
                                    run);
    };
    for_each_staged_run<Tile>(sums, shared.staging[warp], store);
    if (threadIdx.x % kWarp == 0) {
      ptx::arrive(ptx::shared_address(&shared.table_empty[slot.place]));
    }
    slot.advance();
  }
  if (is_in_cluster) {
    ptx::sync_cluster();  // parts readable
    if (blockIdx.x < grid.tiles() * grid.parts) add_parts<Tile, Rows>(args, shared);
    ptx::sync_cluster();  // parts read: blocks may exit
  }
}

// ---- the kernel
// -----------------------------------------------------------------------------------

template <class Tile>
__device__ __forceinline__ void start_barriers(WgmmaShared<Tile>& shared) {
  for (int stage = 0; stage < Tile::kStages; ++stage) {
    ptx::start_barrier(ptx::shared_address(&shared.full[stage]), kWarpgroup);
    ptx::start_barrier(ptx::shared_address(&shared.empty[stage]), Tile::kMultiplyingWarps);
  }
  for (int table = 0; table < kTables; ++table) {
    ptx::start_barrier(ptx::shared_address(&shared.table_full[table]), kWarpgroup);
    ptx::start_barrier(ptx::shared_address(&shared.table_empty[table]), Tile::kMultiplyingWarps);
  }
}

template <class Tile, class Rows>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    wgmma_gemm_kernel(const __grid_constant__ GemmArgs args, const __grid_constant__ Rows rows) {
  static_assert(Tile::kBlocks * (sizeof(WgmmaShared<Tile>) + 1024) <= 228 * 1024,
                "what a multiprocessor has, of which each block reserves 1 KiB");
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& shared = *reinterpret_cast<WgmmaShared<Tile>*>(memory);
  if (threadIdx.x == 0) {
    if (ptx::shared_address(memory) % 1024 != 0) __trap();  // the swizzle would be another
    start_barriers<Tile>(shared);
    shared.grid = tile_grid(shape_of<Tile>(), args, rows.count(), static_cast<int>(gridDim.x));
  }
  if (Tile::kTakesPack && threadIdx.x / kWarp == 1) {
    const bool is_current = is_current_pack(args);
    if (threadIdx.x % kWarp == 0) shared.has_pack = is_current;
  }
  __syncthreads();  // barriers, grid and choice of the weight readable
  if (threadIdx.x < kWarpgroup) {
    ptx::give_registers<Tile::kCopyingRegisters>();
    copy_tiles<Tile>(args, rows, shared);
  } else {
    ptx::take_registers<Tile::kMultiplyingRegisters>();
    multiply_tiles<Tile, Rows>(args, shared);
  }
}

// The persistent grid, and the blocks of its clusters.
struct WgmmaGrid {
  int blocks = 0;
  int cluster = 1;
};

template <class Tile>
cudaLaunchConfig_t wgmma_config(const LaunchContext& context, const WgmmaGrid& grid,
                                cudaLaunchAttribute* attribute) {
  attribute->id = cudaLaunchAttributeClusterDimension;
  attribute->val.clusterDim = {static_cast<unsigned>(grid.cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid.blocks));
  config.blockDim = dim3(Tile::kThreads);
  config.dynamicSmemBytes = sizeof(WgmmaShared<Tile>);
  config.stream = context.stream;
  config.attrs = attribute;
  config.numAttrs = grid.cluster > 1 ? 1 : 0;
  return config;
}

// Blocks without clusters, as gemm_blocks.
template <class Tile, class Rows>
cudaError_t wgmma_blocks(const LaunchContext& context, const GemmArgs& args, int64_t most_rows,
                         int* resident, int* blocks) {
  const auto kernel = wgmma_gemm_kernel<Tile, Rows>;
  constexpr int kBytes = sizeof(WgmmaShared<Tile>);
  cudaError_t status =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (status != cudaSuccess) return status;
  status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(resident, kernel, Tile::kThreads, kBytes);
  *blocks = persistent_blocks(context, shape_of<Tile>(), args, most_rows, *resident);
  return status;
}

// As many whole clusters as the device runs at once, at most as many blocks as without.
template <class Tile, class Rows>
cudaError_t wgmma_grid(const LaunchContext& context, const GemmArgs& args, int64_t most_rows,
                       WgmmaGrid* grid) {
  int resident = 0;
  cudaError_t status = wgmma_blocks<Tile, Rows>(context, args, most_rows, &resident, &grid->blocks);
  if (status != cudaSuccess || !Tile::kTakesCluster || !context.may_take_clusters) return status;
  const int64_t tiles =
      ceil_div(most_rows, Tile::kRows) * ceil_div(args.columns, Tile::kColumns) * args.groups;
  for (const ClusterLine& line : kClusters) {
    if (tiles * line.least_parts > int64_t{context.multiprocessors} * resident) continue;
    WgmmaGrid wanted{grid->blocks / line.blocks * line.blocks, line.blocks};
    if (wanted.blocks == 0) continue;
    cudaLaunchAttribute attribute{};
    const cudaLaunchConfig_t config = wgmma_config<Tile>(context, wanted, &attribute);
    int clusters = 0;
    status = cudaOccupancyMaxActiveClusters(&clusters, wgmma_gemm_kernel<Tile, Rows>, &config);
    if (status != cudaSuccess) {  // a device too small for such a cluster
      cudaGetLastError();
      continue;
    }
    wanted.blocks = std::min(wanted.blocks, clusters * line.blocks);
    // Not every multiprocessor has enough neighbours: are there still as many parts?
    if (wanted.blocks < tiles * line.least_parts) continue;
    *grid = wanted;
    break;
  }
  return cudaSuccess;
}

// Bytes of GemmArgs::partials, with clusters or without. most_rows: the largest possible count of
// rows.
template <class Tile, class Rows>
int64_t wgmma_workspace(const LaunchContext& context, const GemmArgs& args, int64_t most_rows) {
  int resident = 0;
  int blocks = 0;
  const cudaError_t status = wgmma_blocks<Tile, Rows>(context, args, most_rows, &resident, &blocks);
  return status == cudaSuccess ? partial_bytes(shape_of<Tile>(), blocks) : 0;
}

template <class Tile, class Rows>
cudaError_t launch_wgmma_gemm(const LaunchContext& context, const GemmArgs& args, const Rows& rows,
                              int64_t most_rows) {
  if (most_rows == 0 || args.columns == 0) return cudaSuccess;
  WgmmaGrid grid;
  cudaError_t status = wgmma_grid<Tile, Rows>(context, args, most_rows, &grid);
  if (status != cudaSuccess) return status;
  cudaLaunchAttribute attribute{};
  const cudaLaunchConfig_t config = wgmma_config<Tile>(context, grid, &attribute);
  status = cudaLaunchKernelEx(&config, wgmma_gemm_kernel<Tile, Rows>, args, rows);
  if (status != cudaSuccess) return status;
  return launch_finish<typename Tile::Element>(context, args, rows, shape_of<Tile>(), most_rows,
                                               grid.blocks, grid.cluster);
}

}  // namespace perfconv::cuda
