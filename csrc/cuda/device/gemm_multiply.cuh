// The sums of one warp of the implicit GEMM and how a stage is multiplied into them: on tensor
// cores, or by float32 multiply-adds. Both put 16 rows of sums at a time into shared memory for the
// epilogue.
#pragma once

#include "cuda/device/gemm_tile.cuh"
#include "cuda/device/ptx.cuh"

namespace perfconv::cuda {

// mma.sync: a warp's rectangle is made of 16x8 sums; lane l of each holds columns 2(l%4) and
// 2(l%4)+1 of rows l/4 and l/4 + 8.
template <class Tile>
class TensorCoreSums {
 public:
  using T = typename Tile::Element;

  // first_row, first_column: of the warp in the tile. The stage is A, then B.
  __device__ void multiply(const unsigned char* stage, int first_row, int first_column) {
    const uint32_t a_tile = ptx::shared_address(stage);
    const uint32_t b_tile = a_tile + Tile::kABytes;
#pragma unroll
    for (int pair = 0; pair < kSlabChunks / 2; ++pair) {  // 32 bytes of depth: one mma
      uint32_t b[kColumnPairs][4];                        // two 16x8 blocks each
#pragma unroll
      for (int j = 0; j < kColumnPairs; ++j) load_b(b[j], b_tile, first_column + 16 * j, pair);
#pragma unroll
      for (int i = 0; i < kRowBlocks; ++i) {
        uint32_t a[4];
        load_a(a, a_tile, first_row + 16 * i, pair);
#pragma unroll
        for (int j = 0; j < 2 * kColumnPairs; ++j) {
          const uint32_t block[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
          ptx::multiply_add<T>(sums_[i][j], a, block);
        }
      }
    }
  }

  // Rows 16 * slab to 16 * slab + 15 of the warp's rectangle.
  __device__ void stage_rows(int slab, float* staging) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    float* row = staging + lane / 4 * Tile::kSumsPitch + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < kRowBlocks; ++i) {  // a constant index: the sums stay in registers
      if (i != slab) continue;
#pragma unroll
      for (int j = 0; j < 2 * kColumnPairs; ++j) {
        const float* sums = sums_[i][j];
        *reinterpret_cast<float2*>(row + 8 * j) = make_float2(sums[0], sums[1]);
        *reinterpret_cast<float2*>(row + 8 * Tile::kSumsPitch + 8 * j) =
            make_float2(sums[2], sums[3]);
      }
    }
  }

 private:
  static constexpr int kRowBlocks = Tile::kWarpRows / 16;
  static constexpr int kColumnPairs = Tile::kWarpColumns / 16;

  // Lanes 0-15 name the 16 rows at the first chunk of the pair, lanes 16-31 at the second.
  __device__ static void load_a(uint32_t (&a)[4], uint32_t tile, int row, int pair) {
    const uint32_t lane = threadIdx.x % kWarp;
    ptx::load_matrices(a, tile + row * kSlabBytes + slab_offset(lane % 16, 2 * pair + lane / 16));
    round(a);
  }

  // b[0], b[1]: both halves of the depth for columns 0-7; b[2], b[3]: for columns 8-15.
  __device__ static void load_b(uint32_t (&b)[4], uint32_t tile, int column, int pair) {
    const uint32_t lane = threadIdx.x % kWarp;
    const uint32_t matrix = lane / 8;
    if constexpr (Tile::kBLayout == BLayout::kDepthContiguous) {
      const uint32_t row = matrix / 2 * 8 + lane % 8;
      ptx::load_matrices(b, tile + column * kSlabBytes + slab_offset(row, 2 * pair + matrix % 2));
    } else if constexpr (sizeof(T) == 2) {
      const uint32_t depth = 16 * pair + matrix % 2 * 8 + lane % 8;
      ptx::load_matrices_transposed(
          b, tile + column_offset<Tile>(depth, column / Tile::kChunk + matrix / 2));
    } else {  // no transposing load of 32-bit elements
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t depth = 8 * pair + i % 2 * 4 + lane % 4;
        const uint32_t n = column + i / 2 * 8 + lane / 4;
        b[i] = ptx::load_shared(tile + column_offset<Tile>(depth, n / 4) + n % 4 * 4);
      }
    }
    round(b);
  }

  __device__ static void round(uint32_t (&values)[4]) {
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (uint32_t& value : values) value = ptx::round_to_tf32(value);
    }
  }

  float sums_[kRowBlocks][2 * kColumnPairs][4] = {};
};

// FFMA: lane l owns rows l/8 + 4i, and columns l%8 + 8j (or 4(l%8) + 32j to + 3 where the columns
// of B are contiguous), so that eight lanes read one row of A and eight neighbouring chunks of B.
template <class Tile>
class FloatSums {
 public:
  __device__ void multiply(const unsigned char* stage, int first_row, int first_column) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const unsigned char* b_tile = stage + Tile::kABytes;
#pragma unroll 1
    for (int chunk = 0; chunk < kSlabChunks; ++chunk) {
      float b[kColumns][4];  // four of the depth each
      load_b(b, b_tile, first_column, chunk);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const uint32_t row = lane / 8 + i % 2 * 4;
        const float4 a = *reinterpret_cast<const float4*>(
            stage + (first_row + i / 2 * 8) * kSlabBytes + slab_offset(row, chunk));
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          float sum = sums_[i][j];
          sum = fmaf(a.x, b[j][0], sum);
          sum = fmaf(a.y, b[j][1], sum);
          sum = fmaf(a.z, b[j][2], sum);
          sums_[i][j] = fmaf(a.w, b[j][3], sum);
        }
      }
    }
  }

  __device__ void stage_rows(int slab, float* staging) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (i / 4 != slab) continue;
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        staging[(lane / 8 + i % 4 * 4) * Tile::kSumsPitch + column(lane, j)] = sums_[i][j];
      }
    }
  }

 private:
  static constexpr int kRows = Tile::kWarpRows / 4;
  static constexpr int kColumns = Tile::kWarpColumns / 8;
  static constexpr bool kIsDepthContiguous = Tile::kBLayout == BLayout::kDepthContiguous;
  static_assert(kIsDepthContiguous || Tile::kWarpColumns % 32 == 0, "a lane takes whole chunks");

  __device__ static int column(int lane, int j) {
    return kIsDepthContiguous ? lane % 8 + 8 * j : lane % 8 * 4 + j / 4 * 32 + j % 4;
  }

  __device__ static void load_b(float (&b)[kColumns][4], const unsigned char* tile,
                                int first_column, int chunk) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    if constexpr (kIsDepthContiguous) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const auto value = *reinterpret_cast<const float4*>(
            tile + (first_column + 8 * j) * kSlabBytes + slab_offset(lane % 8, chunk));
        b[j][0] = value.x, b[j][1] = value.y, b[j][2] = value.z, b[j][3] = value.w;
      }
    } else {
#pragma unroll
      for (int j = 0; j < kColumns; j += 4) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const int place = (first_column + column(lane, j)) / 4;
          const auto value =
              *reinterpret_cast<const float4*>(tile + column_offset<Tile>(4 * chunk + k, place));
          b[j][k] = value.x, b[j + 1][k] = value.y, b[j + 2][k] = value.z, b[j + 3][k] = value.w;
        }
      }
    }
  }

  float sums_[kRows][kColumns] = {};
};

template <class Tile>
using Sums = std::conditional_t<Tile::kMultiply == Multiply::kTensorCores, TensorCoreSums<Tile>,
                                FloatSums<Tile>>;

}  // namespace perfconv::cuda
