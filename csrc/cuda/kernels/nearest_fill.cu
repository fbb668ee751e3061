// Nearest fill: filled[p] = image[sources[p]], its map of sources, and its gradient.
//
// The map takes two exact passes. column_kernel: for every pixel the nearest active row of its own
// column, ties to the upper one. source_kernel: for every pixel the best of these over the columns
// of its row, outwards until the horizontal distance alone is larger than the best distance; the
// smallest (squared distance, flat position) wins.
//
// The gradient of a pixel p in row r and column c adds its cell, the pixels whose source it is, in
// ascending order and without atomics: the rows of the cell are among those where column c names r;
// and along a row the column of the source never decreases (squared distances to two columns differ
// by a line in x, so they cross once), so the cell's part of a row is one run, found by bisection.
#include <cstdint>

#include "cuda/device/fill.cuh"
#include "cuda/device/grid.cuh"
#include "cuda/device/rows.cuh"
#include "cuda/kernels/launch.h"

namespace perfconv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerMultiprocessor = 8;
constexpr int kLeastBlocks = 4;  // of grad_kernel: 64 registers a thread, no spills

// ---- the map
// -------------------------------------------------------------------------------------

constexpr int kColumns = 32;   // of a block, a warp each segment
constexpr int kSegments = 16;  // parts that the rows are split into

// A block takes kColumns columns of an image; a thread takes one segment of one column.
__global__ void __launch_bounds__(kColumns* kSegments)
    column_kernel(const MaskArgs mask, int32_t* __restrict__ column_rows) {
  __shared__ int first_active[kSegments][kColumns];  // row of the segment, or -1
  __shared__ int last_active[kSegments][kColumns];
  const auto width = static_cast<int>(mask.width);
  const auto height = static_cast<int>(mask.height);
  const int strips = ceil_div(width, kColumns);
  const int strip = static_cast<int>(blockIdx.x) % strips;
  const int64_t image = static_cast<int>(blockIdx.x) / strips;
  const int own = threadIdx.x % kColumns;
  const int segment = threadIdx.x / kColumns;
  const int column = strip * kColumns + own;
  const int rows = ceil_div(height, kSegments);
  const int begin = min(segment * rows, height);
  const int end = column < width ? min(begin + rows, height) : begin;  // nothing beyond the image
  const int64_t top = image * height * width + column;                 // flat position of row 0

  int first = -1;
  int last = -1;
  for (int y = begin; y < end; ++y) {
    if (!is_active(mask, top + int64_t{y} * width)) continue;
    if (first < 0) first = y;
    last = y;
  }
  first_active[segment][own] = first;
  last_active[segment][own] = last;
  __syncthreads();  // segments readable

  int above = -1;
  for (int s = 0; s < segment; ++s) {
    if (last_active[s][own] >= 0) above = last_active[s][own];
  }
  for (int y = begin; y < end; ++y) {
    const int64_t place = top + int64_t{y} * width;
    if (is_active(mask, place)) above = y;
    column_rows[place] = above;
  }
  int below = -1;
  for (int s = kSegments - 1; s > segment; --s) {
    if (first_active[s][own] >= 0) below = first_active[s][own];
  }
  for (int y = end - 1; y >= begin; --y) {
    const int64_t place = top + int64_t{y} * width;
    if (is_active(mask, place)) below = y;
    above = column_rows[place];
    if (below >= 0 && (above < 0 || below - y < y - above)) column_rows[place] = below;
  }
}

// Best source of pixel (y, x) as a flat position in its image; line holds the rows of its columns.
__device__ int64_t best_source(const int32_t* __restrict__ line, int64_t y, int64_t x,
                               int64_t width) {
  int64_t best = -1;
  int64_t best_distance = INT64_MAX;
  const auto consider = [&](int64_t column) {
    if (column < 0 || column >= width || line[column] < 0) return;
    const int64_t row = line[column];
    const int64_t distance = (row - y) * (row - y) + (column - x) * (column - x);
    const int64_t flat = row * width + column;
    if (distance < best_distance || (distance == best_distance && flat < best)) {
      best = flat;
      best_distance = distance;
    }
  };
  for (int64_t step = 0; step < width && step * step <= best_distance; ++step) {
    consider(x - step);
    consider(x + step);
  }
  return best;
}

__global__ void __launch_bounds__(kThreads)
    source_kernel(const MaskArgs mask, const int32_t* __restrict__ column_rows,
                  int32_t* __restrict__ sources) {
  const int64_t threads = int64_t{gridDim.x} * kThreads;
  const int64_t pixels = mask.pixels();
  for (int64_t p = int64_t{blockIdx.x} * kThreads + threadIdx.x; p < pixels; p += threads) {
    const int64_t line = p / mask.width;
    const int64_t image = line / mask.height;
    const int64_t first = line * mask.width;
    const int64_t source =
        best_source(column_rows + first, line - image * mask.height, p - first, mask.width);
    sources[p] = source < 0 ? -1 : static_cast<int32_t>(image * mask.height * mask.width + source);
  }
}

// ---- the fill
// ------------------------------------------------------------------------------------

// image and filled may be the same: sources are active pixels, which are then left alone.
template <class Word>
__global__ void __launch_bounds__(kThreads)
    fill_kernel(const Word* image, const int32_t* __restrict__ sources, int64_t pixels,
                int64_t words, int row_threads, Word* filled) {
  const RowWalk walk = walk_rows(row_threads);
  for (int64_t p = walk.first; p < pixels; p += walk.step) {
    const int64_t source = sources[p];
    if (source == p && image == filled) continue;
    for (int64_t w = walk.lane; w < words; w += row_threads) {
      filled[p * words + w] = source < 0 ? Word{} : image[source * words + w];
    }
  }
}

// ---- the gradient
// --------------------------------------------------------------------------------

// The first of the pixels [begin, begin + width), a row, whose source lies in `column` or to the
// right of it.
__device__ int64_t first_from_column(const int32_t* __restrict__ sources, int64_t begin,
                                     int64_t width, int64_t column) {
  int64_t low = begin;
  int64_t high = begin + width;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (sources[middle] % width < column) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// Calls visit(begin, end) for the runs of pixels whose source is p, ascending.
template <class Visit>
__device__ void visit_cell(const MaskArgs& mask, const NearestMap& map, int64_t p, Visit visit) {
  const int64_t width = mask.width;
  const int64_t line = p / width;
  const int64_t column = p - line * width;
  const int64_t top = line / mask.height * mask.height;  // the first line of the image
  const auto names_p = [&](int64_t other) {
    return map.column_rows[other * width + column] == line - top;
  };
  int64_t first = line;
  while (first > top && names_p(first - 1)) --first;
  for (int64_t other = first; other < top + mask.height && names_p(other); ++other) {
    const int64_t begin = first_from_column(map.sources, other * width, width, column);
    visit(begin, first_from_column(map.sources, other * width, width, column + 1));
  }
}

template <class T, int kElements>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    grad_kernel(const T* __restrict__ grad, const __grid_constant__ MaskArgs mask,
                const __grid_constant__ NearestMap map, int64_t channels, int row_threads,
                T* __restrict__ result) {
  using Part = Elements<T, kElements>;
  const RowWalk walk = walk_rows(row_threads);
  const int64_t pixels = mask.pixels();
  for (int64_t p = walk.first; p < pixels; p += walk.step) {
    for (int64_t c = walk.lane * kElements; c < channels; c += row_threads * kElements) {
      SumType<T> sums[kElements] = {};
      if (map.sources[p] == p) {
        visit_cell(mask, map, p, [&](int64_t begin, int64_t end) {
#pragma unroll 4  // four loads in flight; the additions stay in order
          for (int64_t q = begin; q < end; ++q) {
            const Part row = *reinterpret_cast<const Part*>(grad + q * channels + c);
#pragma unroll
            for (int i = 0; i < kElements; ++i) sums[i] += to_sum(row.values[i]);
          }
        });
      }
      Part rounded;
#pragma unroll
      for (int i = 0; i < kElements; ++i) rounded.values[i] = from_sum<T>(sums[i]);
      *reinterpret_cast<Part*>(result + p * channels + c) = rounded;
    }
  }
}

}  // namespace

cudaError_t launch_nearest_map(const LaunchContext& context, const MaskArgs& mask,
                               const NearestMap& map) {
  if (mask.pixels() == 0) return cudaSuccess;
  const auto strips = static_cast<unsigned>(mask.images * ceil_div(mask.width, kColumns));
  column_kernel<<<strips, kColumns * kSegments, 0, context.stream>>>(mask, map.column_rows);
  const unsigned blocks = grid_blocks(context, mask.pixels(), kThreads, kBlocksPerMultiprocessor);
  source_kernel<<<blocks, kThreads, 0, context.stream>>>(mask, map.column_rows, map.sources);
  return cudaGetLastError();
}

cudaError_t launch_nearest_fill(const LaunchContext& context, StorageType storage,
                                const void* image, const int32_t* sources, int64_t pixels,
                                int64_t channels, void* filled) {
  if (pixels * channels == 0) return cudaSuccess;
  const auto launch = [&](auto tag) {
    using Word = typename decltype(tag)::Type;
    const int64_t words = channels * element_bytes(storage) / static_cast<int64_t>(sizeof(Word));
    const int row_threads = threads_of_row(words);
    const unsigned blocks =
        grid_blocks(context, pixels * row_threads, kThreads, kBlocksPerMultiprocessor);
    fill_kernel<<<blocks, kThreads, 0, context.stream>>>(static_cast<const Word*>(image), sources,
                                                         pixels, words, row_threads,
                                                         static_cast<Word*>(filled));
    return cudaGetLastError();
  };
  return visit_word(storage, channels, launch, image, filled);
}

cudaError_t launch_nearest_fill_grad(const LaunchContext& context, StorageType storage,
                                     const void* grad, const MaskArgs& mask, const NearestMap& map,
                                     int64_t channels, void* result) {
  if (mask.pixels() * channels == 0) return cudaSuccess;
  return visit_storage(storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    const auto launch = [&](auto elements) {
      constexpr int kElements = decltype(elements)::value;
      const int row_threads = threads_of_row(channels / kElements);
      const unsigned blocks =
          grid_blocks(context, mask.pixels() * row_threads, kThreads, kBlocksPerMultiprocessor);
      grad_kernel<T, kElements><<<blocks, kThreads, 0, context.stream>>>(
          static_cast<const T*>(grad), mask, map, channels, row_threads, static_cast<T*>(result));
      return cudaGetLastError();
    };
    return visit_elements<T>(channels, launch, grad, result);
  });
}

}  // namespace perfconv::cuda
