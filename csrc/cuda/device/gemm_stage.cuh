// One stage of the implicit GEMM's ring: which (tap, slab) comes next, and its asynchronous copies.
#pragma once

#include "cuda/device/gemm_args.cuh"
#include "cuda/device/gemm_tile.cuh"
#include "cuda/device/ptx.cuh"

namespace perfconv::cuda {

// The walk over the depth: slabs outside, the tile's taps inside, so that the slab of an input
// pixel is read by its taps one soon after the other, while it is in the first-level cache.
class Walk {
 public:
  // The step `first` of a tile whose rows need `taps`, which is not 0.
  __device__ Walk(uint32_t taps, int first) : taps_(taps) {
    slab_ = first / __popc(taps);
    left_ = taps;
    for (int skipped = first % __popc(taps); skipped > 0; --skipped) left_ &= left_ - 1;
  }

  __device__ int tap() const { return __ffs(static_cast<int>(left_)) - 1; }
  __device__ int slab() const { return slab_; }
  __device__ void advance() {
    left_ &= left_ - 1;
    if (left_ != 0) return;
    left_ = taps_;
    ++slab_;
  }

 private:
  uint32_t taps_;
  uint32_t left_;  // of this slab
  int slab_;
};

// The rows of a tile, in shared memory.
template <int kRows>
struct RowTable {
  uint32_t base[kRows];
  int32_t scale[kRows];
  uint32_t taps[kRows];
  int32_t target[kRows];
  uint32_t warp_taps[kWarp];
  int64_t b_offset;  // of the tile: elements to add to B, and to the bias
  int bias_offset;
};

// The rows of a tile's A that a thread copies, one chunk of each: every `step`th from the first on.
template <class T, int count, int step>
class GatheredRows {
 public:
  template <int rows>
  __device__ GatheredRows(const RowTable<rows>& table, uint32_t first) {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const uint32_t row = first + i * step;
      base_[i] = table.base[row];
      scale_[i] = table.scale[row];
      taps_[i] = table.taps[row];
    }
  }

  // place: shared address of the first row's chunk, the next one is `step` rows of row_bytes on;
  // depth: of the chunk in a pixel of A. Zeros where a row has no such tap, or the depth ends.
  template <int row_bytes>
  __device__ void copy(const GemmArgs& args, const T* a, int tap, int depth, bool is_inside,
                       uint32_t place) const {
    const int32_t delta = args.delta[tap];
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const bool is_valid = (taps_[i] >> tap & 1u) != 0 && is_inside;
      const uint32_t pixel = gathered_pixel(base_[i], scale_[i], delta);
      const T* source = is_valid ? a + row_offset(pixel, args.a_pitch) + depth : a;
      ptx::copy_16_async(place + i * step * row_bytes, source, is_valid);
    }
  }

 private:
  uint32_t base_[count];
  int32_t scale_[count];
  uint32_t taps_[count];
};

// A thread's share of the copies of every stage of one tile.
template <class Tile>
class StageLoader {
 public:
  using T = typename Tile::Element;

  // b already points at the group, the first column of the tile is `column`.
  __device__ StageLoader(const GemmArgs& args, const RowTable<Tile::kRows>& table, const T* a,
                         const T* b, int column)
      : args_(args), rows_(table, first_row()), a_(a), b_(b), column_(column) {}

  // Starts the copies of one slab of one tap; stage is the shared address of A, then B.
  __device__ void load(uint32_t stage, int tap, int slab) const {
    load_a(stage, tap, slab);
    if constexpr (Tile::kBLayout == BLayout::kDepthContiguous) {
      load_b_by_column(stage + Tile::kABytes, tap, slab);
    } else {
      load_b_by_depth(stage + Tile::kABytes, tap, slab);
    }
  }

 private:
  static constexpr int kRowStep = Tile::kThreads / kSlabChunks;
  static constexpr int kBColumns = Tile::kColumns / kRowStep;
  static constexpr int kDepthStep = Tile::kThreads / Tile::kBRowChunks;

  // Four neighbouring threads copy the 64 bytes of one row.
  __device__ static uint32_t first_row() { return threadIdx.x / kSlabChunks; }
  __device__ static uint32_t chunk() { return threadIdx.x % kSlabChunks; }
  static_assert(kRowStep % 8 == 0, "the chunks of a thread are rotated alike");

  __device__ void load_a(uint32_t tile, int tap, int slab) const {
    const int depth = slab * Tile::kDepth + static_cast<int>(chunk()) * Tile::kChunk;
    rows_.template copy<kSlabBytes>(args_, a_, tap, depth, depth < args_.depth,
                                    tile + slab_offset(first_row(), chunk()));
  }

  __device__ void load_b_by_column(uint32_t tile, int tap, int slab) const {
    const int depth = slab * Tile::kDepth + static_cast<int>(chunk()) * Tile::kChunk;
    const uint32_t place = tile + slab_offset(first_row(), chunk());
    const T* first = b_ + tap * args_.b_tap + depth;
#pragma unroll
    for (int i = 0; i < kBColumns; ++i) {
      const int column = column_ + static_cast<int>(first_row()) + i * kRowStep;
      const bool is_valid = column < args_.columns && depth < args_.depth;
      const T* source = is_valid ? first + column * args_.b_column : b_;
      ptx::copy_16_async(place + i * kRowStep * kSlabBytes, source, is_valid);
    }
  }

  __device__ void load_b_by_depth(uint32_t tile, int tap, int slab) const {
    const int chunk = static_cast<int>(threadIdx.x) % Tile::kBRowChunks;
    const int column = column_ + chunk * Tile::kChunk;
#pragma unroll
    for (int row = static_cast<int>(threadIdx.x) / Tile::kBRowChunks; row < Tile::kDepth;
         row += kDepthStep) {
      const int depth = slab * Tile::kDepth + row;
      const bool is_valid = column < args_.columns && depth < args_.depth;
      const T* source = is_valid ? b_ + tap * args_.b_tap + depth * args_.b_depth + column : b_;
      ptx::copy_16_async(tile + column_offset<Tile>(row, chunk), source, is_valid);
    }
  }

  const GemmArgs& args_;
  GatheredRows<T, Tile::kRows / kRowStep, kRowStep> rows_;
  const T* a_;
  const T* b_;
  int column_;
};

}  // namespace perfconv::cuda
