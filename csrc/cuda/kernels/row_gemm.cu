// A plain tiled GEMM whose number of rows, or depth, is the count of active pixels on the device:
// product[m][n] = sum_k left[m][k] right[k][n], for each group.
//
// A block computes a tile of kTile x kTile sums in steps of kDepth, tile after tile (as many as the
// count asks for); a thread keeps kPerThread x kPerThread of them, kSide apart, so that
// neighbouring threads store neighbouring elements.
//   shared memory: left [kDepth][kTile + 1], right [kDepth][kTile + 1], in the type of the sums
//   for each step: load both tiles, barrier, multiply, barrier
// Exact products, sums in ascending k, float (float64 for float64). Any sizes and strides; loads
// are coalesced along whichever index has stride 1. For teaching and comparing, not for speed: no
// tensor cores, no overlap of loads and sums.
#include "cuda/device/element.cuh"
#include "cuda/device/grid.cuh"
#include "cuda/kernels/launch.h"

namespace perfconv::cuda {
namespace {

constexpr int kTile = 64;
constexpr int kDepth = 16;
constexpr int kThreads = 256;
constexpr int kSide = 16;  // threads along each side of the tile
constexpr int kPerThread = kTile / kSide;
constexpr int kBlocksPerMultiprocessor = 4;
static_assert(kSide * kSide == kThreads, "the threads are a square");

// One more than needed: writes down a column then go to different banks.
template <class Sum>
using Tile = Sum[kDepth][kTile + 1];

// tile[k][i] = element (first_i + i, first_k + k), 0 outside sizes. The strides are those of i and
// k.
template <class T>
__device__ __forceinline__ void load_tile(const T* __restrict__ data, int64_t stride_i,
                                          int64_t stride_k, int64_t first_i, int64_t size_i,
                                          int64_t first_k, int64_t size_k, Tile<SumType<T>>& tile) {
  const bool is_k_fastest = stride_k == 1;
  for (int e = threadIdx.x; e < kTile * kDepth; e += kThreads) {
    const int k = is_k_fastest ? e % kDepth : e / kTile;
    const int i = is_k_fastest ? e / kDepth : e % kTile;
    const bool is_there = first_i + i < size_i && first_k + k < size_k;
    tile[k][i] = is_there ? to_sum(data[(first_i + i) * stride_i + (first_k + k) * stride_k])
                          : SumType<T>(0);
  }
}

template <class Sum>
__device__ __forceinline__ void multiply(const Tile<Sum>& left, const Tile<Sum>& right,
                                         Sum (&sums)[kPerThread][kPerThread]) {
  const int row = threadIdx.x / kSide;
  const int column = threadIdx.x % kSide;
#pragma unroll
  for (int k = 0; k < kDepth; ++k) {
#pragma unroll
    for (int m = 0; m < kPerThread; ++m) {
#pragma unroll
      for (int n = 0; n < kPerThread; ++n) {
        sums[m][n] += left[k][row + kSide * m] * right[k][column + kSide * n];
      }
    }
  }
}

template <class T, bool kKeepsSums>
__global__ void __launch_bounds__(kThreads, 2)
    row_gemm_kernel(const __grid_constant__ RowGemmArgs args) {
  using Sum = SumType<T>;
  using Out = std::conditional_t<kKeepsSums, Sum, T>;
  __shared__ Tile<Sum> left;
  __shared__ Tile<Sum> right;
  const int64_t rows = args.is_count_depth ? args.rows : int64_t{*args.count};
  const int64_t depth = args.is_count_depth ? int64_t{*args.count} : args.depth;
  const int64_t tile_rows = ceil_div(rows, kTile);
  const int64_t tile_columns = ceil_div(args.columns, kTile);
  for (int64_t t = blockIdx.x; t < tile_rows * tile_columns * args.groups; t += gridDim.x) {
    const int64_t group = t / (tile_rows * tile_columns);
    const int64_t first_row = t / tile_columns % tile_rows * kTile;
    const int64_t first_column = t % tile_columns * kTile;
    const T* from_left = static_cast<const T*>(args.left.data) + group * args.left.group_stride;
    const T* from_right = static_cast<const T*>(args.right.data) + group * args.right.group_stride;
    Sum sums[kPerThread][kPerThread] = {};
    for (int64_t k = 0; k < depth; k += kDepth) {
      load_tile(from_left, args.left.row_stride, args.left.column_stride, first_row, rows, k, depth,
                left);
      load_tile(from_right, args.right.column_stride, args.right.row_stride, first_column,
                args.columns, k, depth, right);
      __syncthreads();  // tiles readable
      multiply(left, right, sums);
      __syncthreads();  // tiles may be written again
    }
    Out* product = static_cast<Out*>(args.product) + group * args.product_group_stride;
#pragma unroll
    for (int m = 0; m < kPerThread; ++m) {
#pragma unroll
      for (int n = 0; n < kPerThread; ++n) {
        const int64_t row = first_row + threadIdx.x / kSide + kSide * m;
        const int64_t column = first_column + threadIdx.x % kSide + kSide * n;
        if (row < rows && column < args.columns) {
          product[row * args.product_row_stride + column] = from_sum<Out>(sums[m][n]);
        }
      }
    }
  }
}

}  // namespace

cudaError_t launch_row_gemm(const LaunchContext& context, const RowGemmArgs& args) {
  const int64_t tiles = ceil_div(args.rows, kTile) * ceil_div(args.columns, kTile) * args.groups;
  if (tiles == 0) return cudaSuccess;
  const unsigned blocks = grid_blocks(context, tiles, 1, kBlocksPerMultiprocessor);
  return visit_storage(args.storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    if (args.keeps_sums) {
      row_gemm_kernel<T, true><<<blocks, kThreads, 0, context.stream>>>(args);
    } else {
      row_gemm_kernel<T, false><<<blocks, kThreads, 0, context.stream>>>(args);
    }
    return cudaGetLastError();
  });
}

}  // namespace perfconv::cuda
