// The tiles of the implicit GEMM: sizes, and where an element of a stage lies in shared memory.
#pragma once

#include <cstdint>

#include "cuda/device/element.cuh"

namespace perfconv::cuda {

constexpr int kWarp = 32;
constexpr int kChunkBytes = 16;  // of one asynchronous copy
constexpr int kSlabBytes = 64;   // of one row in a stage: two full memory sectors
constexpr int kSlabChunks = kSlabBytes / kChunkBytes;

// How the products of a stage are summed.
enum class Multiply {
  kTensorCores,  // mma.sync; float operands are rounded to tf32
  kFloat,        // FFMA: float32 exactly
};

// How the right factor B(tap, depth, column) lies in global memory.
enum class BLayout {
  kDepthContiguous,   // forward: a column's depth, weight[n][t][c] for column n
  kColumnContiguous,  // dgrad: a depth's columns, weight[c][t][n] for column n
};

// A block's tile of kRows x kColumns sums, one warp a rectangle of it; kStages slabs in flight.
template <class Element_, Multiply multiply, BLayout b_layout, int rows, int columns, int warps_m,
          int warps_n, int stages>
struct GemmTile {
  using Element = Element_;
  static constexpr Multiply kMultiply = multiply;
  static constexpr BLayout kBLayout = b_layout;
  static constexpr int kRows = rows;
  static constexpr int kColumns = columns;
  static constexpr int kWarpsN = warps_n;
  static constexpr int kStages = stages;
  static constexpr int kThreads = warps_m * warps_n * kWarp;
  // Threads of a multiprocessor that registers must suffice for: 128 each, or 168 where a lane of
  // FloatSums holds runs of a column-contiguous B.
  static constexpr int kMinThreads =
      multiply == Multiply::kFloat && b_layout == BLayout::kColumnContiguous ? 384 : 512;
  static constexpr int kMinBlocks = kMinThreads / kThreads;
  static constexpr int kWarpRows = rows / warps_m;
  static constexpr int kWarpColumns = columns / warps_n;
  static constexpr int kChunk = kChunkBytes / static_cast<int>(sizeof(Element));  // elements
  static constexpr int kDepth = kSlabBytes / static_cast<int>(sizeof(Element));   // of a slab

  // Shared memory: kStages of (A (kRows, kDepth), B (kColumns, kDepth) or (kDepth, kColumns)). The
  // epilogue stages 16 rows of sums a warp in the same memory.
  static constexpr int kABytes = rows * kSlabBytes;
  static constexpr int kBBytes = columns * kSlabBytes;
  static constexpr int kStageBytes = kABytes + kBBytes;
  static constexpr int kSlabRows = 16;                 // of sums that a warp stages at once
  static constexpr int kSumsPitch = kWarpColumns + 8;  // floats: rows shifted by 8 banks
  static constexpr int kSumsBytes = kSlabRows * kSumsPitch * static_cast<int>(sizeof(float));
  static constexpr int kSharedBytes = kStages * kStageBytes;

  static constexpr int kBRowBytes = b_layout == BLayout::kDepthContiguous
                                        ? kSlabBytes
                                        : columns * static_cast<int>(sizeof(Element));
  static constexpr int kBRowChunks = kBRowBytes / kChunkBytes;

  static_assert((rows & (rows - 1)) == 0 && (columns & (columns - 1)) == 0,
                "finish_kernel divides by shifts");
  static_assert(kWarpRows % 16 == 0 && kWarpColumns % 16 == 0, "a warp loads 16 x 16 at a time");
  static_assert(rows * kSlabChunks % kThreads == 0, "every thread copies the same share of A");
  static_assert(columns * kSlabChunks % kThreads == 0, "every thread copies the same share of B");
  static_assert(kSumsBytes * warps_m * warps_n <= kSharedBytes, "the epilogue stages in the ring");
  static_assert(kBRowChunks >= kSlabChunks, "rows of a column-contiguous B span all banks");
  static_assert(stages >= 2, "one slab is read while another arrives");
};

// Byte offset of a 16-byte chunk in a tile of kSlabBytes a row. Two rows fill the 128 bytes of all
// banks; the rotation by row / 2 spreads one chunk of eight neighbouring rows over all of them. It
// repeats after eight rows: callers add multiples of eight rows afterwards, which saves registers.
__device__ __forceinline__ uint32_t slab_offset(uint32_t row, uint32_t chunk) {
  return row * kSlabBytes + ((chunk ^ (row / 2 % 4)) * kChunkBytes);
}

// Byte offset of a chunk of a column-contiguous B, whose rows (one of each depth) fill all banks.
// ldmatrix reads one chunk of eight rows; the tf32 loads read two neighbouring chunks of four rows.
template <class Tile>
__device__ __forceinline__ uint32_t column_offset(uint32_t depth, uint32_t chunk) {
  const uint32_t turn = sizeof(typename Tile::Element) == 2 ? depth % 8 : depth % 4 * 2;
  return depth * Tile::kBRowBytes + ((chunk ^ turn) * kChunkBytes);
}

}  // namespace perfconv::cuda
