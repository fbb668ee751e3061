// Few tiles on sm_90a: the parts of a tile are made by neighbouring blocks of one cluster, which
// add them through each other's shared memory. Nothing goes to the workspace, and each block
// finishes its share of the tile's rows.
//
//   every block: one part of one tile, or none; parts: 2, 4 or 8, a divisor of the cluster's size
//     sums -> ring, as rows; barrier of the cluster
//     its share of the rows: the sums of all parts, read in the order of the parts -> output
//     barrier of the cluster: no block exits before others have read
// The sums are those that finish_kernel would make of the same parts, to the bit. Any other number
// of parts meets in the workspace as in implicit_gemm.cuh: whether parts are needed, and how many,
// is known on the device only. KERNELS.md K-083.
#pragma once

#include "cuda/device/implicit_gemm.cuh"
#include "cuda/device/ptx_sm90a.cuh"
#include "cuda/device/wgmma_pipeline.cuh"

namespace perfconv::cuda {

// ---- host: which launches have clusters
// -----------------------------------------------------------

struct ClusterLine {
  int blocks;       // of a cluster
  int least_parts;  // blocks of the device for each tile, where the mask is full
};

// The first line that fits; without one, no cluster: a full mask keeps every block busy, and how
// many parts sparse ones leave room for is not to be rounded down.
constexpr ClusterLine kClusters[] = {
    // Sparse masks make eight parts, a full one four or more.
    {8, 4},
    // A full mask makes two or three, one of half the pixels four.
    {4, 2},
    // A full mask makes one, one of half the pixels two. Pairs leave no multiprocessor out, where
    // the 16 or 18 of a neighbourhood are cut into larger clusters.
    {2, 1},
};

// ---- device
// ---------------------------------------------------------------------------------------

template <class Tile>
__device__ __forceinline__ bool adds_in_cluster(const TileGrid& grid) {
  if constexpr (Tile::kTakesCluster) {
    return is_split_in_cluster(grid.parts, static_cast<int>(ptx::cluster_blocks()));
  }
  return false;
}

template <class Tile>
constexpr int kPartPitch = Tile::kColumns + 8;  // floats: rows shifted by 8 banks

// The sums of a multiplying warp, to its 16 rows of the part in the ring.
template <class Tile, class Shared>
__device__ __forceinline__ void keep_part(const float (&sums)[Tile::kSums], int warp,
                                          Shared& shared) {
  static_assert(Tile::kRows * kPartPitch<Tile> * sizeof(float) <= sizeof(shared.ring),
                "a part fits into the ring");
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  ptx::sync_threads<2, 2 * kWarpgroup>();  // no warpgroup reads the ring any more
  auto* place = reinterpret_cast<float*>(shared.ring) + (warp * 16 + lane / 4) * kPartPitch<Tile> +
                lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < Tile::kSums / 4; ++i) {
    const float* values = sums + 4 * i;
    *reinterpret_cast<float2*>(place + 8 * i) = make_float2(values[0], values[1]);
    *reinterpret_cast<float2*>(place + 8 * kPartPitch<Tile> + 8 * i) =
        make_float2(values[2], values[3]);
  }
}

// Adds the parts of this block's tile for its share of the rows, and stores them.
template <class Tile, class Rows, class Shared>
__device__ __forceinline__ void add_parts(const GemmArgs& args, const Shared& shared) {
  using T = typename Tile::Element;
  constexpr int kSize = kRunSize<T>;
  constexpr int kRuns = Tile::kColumns / kSize;  // of a row
  const TileGrid& grid = shared.grid;
  const Unit unit = unit_of(shape_of<Tile>(), grid, blockIdx.x);
  const RowTable<Tile::kRows>& table = shared.tables[0];  // of the only tile
  const uint32_t first_rank = ptx::cluster_rank() - static_cast<uint32_t>(unit.part);
  const uint32_t ring = ptx::shared_address(shared.ring);
  const int rows = Tile::kRows / grid.parts;
  const auto thread = static_cast<int>(threadIdx.x) - kWarpgroup;
  for (int run = thread; run < rows * kRuns; run += 2 * kWarpgroup) {
    const int row = unit.part * rows + run / kRuns;
    const int column = run % kRuns * kSize;
    const int target = table.target[row];
    if (target < 0) continue;
    const uint32_t place = ring + static_cast<uint32_t>(row * kPartPitch<Tile> + column) * 4;
    alignas(16) float sums[kSize] = {};
#pragma unroll 2
    for (int part = 0; part < grid.parts; ++part) {
      const uint32_t there =
          ptx::address_in_cluster(place, first_rank + static_cast<uint32_t>(part));
#pragma unroll
      for (int i = 0; i < kSize; i += 4) {
        const float4 values = ptx::load_from_cluster(there + 4 * i);
        sums[i] += values.x, sums[i + 1] += values.y;
        sums[i + 2] += values.z, sums[i + 3] += values.w;
      }
    }
    store_columns<T, Rows>(args, sums, target, unit.group, unit.column + column, table.bias_offset);
  }
}

}  // namespace perfconv::cuda
