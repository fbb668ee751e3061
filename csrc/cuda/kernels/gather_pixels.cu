// Rows of active pixels: rows[i] = image[idx[i]], and back: image[p] = rows[row_of[p]], else base.
//
// Copies only, so elements are moved as words of 16 bytes (of one element where rows do not start
// at a multiple of 16 bytes). A few neighbouring threads take a row, in a grid-stride loop over the
// capacity; the count is read on the device. Entries of the list outside the image are skipped.
#include "cuda/device/grid.cuh"
#include "cuda/device/rows.cuh"
#include "cuda/kernels/launch.h"

namespace perfconv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerMultiprocessor = 8;

// The pixel of an entry of the list, -1 past the count.
__device__ __forceinline__ int64_t listed_pixel(const ActiveArgs& active, int64_t entry) {
  if (entry >= *active.count) return -1;
  const int64_t pixel = active.idx[entry];
  return pixel < active.capacity ? pixel : -1;
}

template <class Word>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(const Word* __restrict__ image, const ActiveArgs active, int64_t words,
                  int row_threads, Word* __restrict__ rows) {
  const RowWalk walk = walk_rows(row_threads);
  for (int64_t row = walk.first; row < active.capacity; row += walk.step) {
    const int64_t pixel = listed_pixel(active, row);
    for (int64_t w = walk.lane; w < words; w += row_threads) {
      rows[row * words + w] = pixel < 0 ? Word{} : image[pixel * words + w];
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    invert_kernel(const ActiveArgs active, int32_t* __restrict__ row_of) {
  const int64_t threads = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < active.capacity;
       i += threads) {
    const int64_t pixel = listed_pixel(active, i);
    if (pixel >= 0) row_of[pixel] = static_cast<int32_t>(i);
  }
}

template <class Word>
__global__ void __launch_bounds__(kThreads)
    scatter_kernel(const Word* __restrict__ rows, const int32_t* __restrict__ row_of,
                   int64_t pixels, const Word* __restrict__ base, int64_t words, int row_threads,
                   Word* __restrict__ image) {
  const RowWalk walk = walk_rows(row_threads);
  for (int64_t pixel = walk.first; pixel < pixels; pixel += walk.step) {
    const int64_t row = row_of[pixel];
    for (int64_t w = walk.lane; w < words; w += row_threads) {
      const int64_t place = pixel * words + w;
      image[place] = row >= 0 ? rows[row * words + w] : base != nullptr ? base[place] : Word{};
    }
  }
}

}  // namespace

cudaError_t launch_gather_pixels(const LaunchContext& context, StorageType storage,
                                 const void* image, int64_t channels, const ActiveArgs& active,
                                 void* rows) {
  if (active.capacity * channels == 0) return cudaSuccess;
  const auto launch = [&](auto tag) {
    using Word = typename decltype(tag)::Type;
    const int64_t words = channels * element_bytes(storage) / static_cast<int64_t>(sizeof(Word));
    const int row_threads = threads_of_row(words);
    const unsigned blocks =
        grid_blocks(context, active.capacity * row_threads, kThreads, kBlocksPerMultiprocessor);
    gather_kernel<<<blocks, kThreads, 0, context.stream>>>(
        static_cast<const Word*>(image), active, words, row_threads, static_cast<Word*>(rows));
    return cudaGetLastError();
  };
  return visit_word(storage, channels, launch, image, rows);
}

cudaError_t launch_invert_active(const LaunchContext& context, const ActiveArgs& active,
                                 int32_t* row_of) {
  if (active.capacity == 0) return cudaSuccess;
  const auto bytes = static_cast<size_t>(active.capacity) * sizeof(int32_t);
  const cudaError_t status = cudaMemsetAsync(row_of, 0xFF, bytes, context.stream);  // -1
  if (status != cudaSuccess) return status;
  const unsigned blocks = grid_blocks(context, active.capacity, kThreads, kBlocksPerMultiprocessor);
  invert_kernel<<<blocks, kThreads, 0, context.stream>>>(active, row_of);
  return cudaGetLastError();
}

cudaError_t launch_scatter_pixels(const LaunchContext& context, StorageType storage,
                                  const void* rows, int64_t channels, const int32_t* row_of,
                                  int64_t pixels, const void* base, void* image) {
  if (pixels * channels == 0) return cudaSuccess;
  const auto launch = [&](auto tag) {
    using Word = typename decltype(tag)::Type;
    const int64_t words = channels * element_bytes(storage) / static_cast<int64_t>(sizeof(Word));
    const int row_threads = threads_of_row(words);
    const unsigned blocks =
        grid_blocks(context, pixels * row_threads, kThreads, kBlocksPerMultiprocessor);
    scatter_kernel<<<blocks, kThreads, 0, context.stream>>>(
        static_cast<const Word*>(rows), row_of, pixels, static_cast<const Word*>(base), words,
        row_threads, static_cast<Word*>(image));
    return cudaGetLastError();
  };
  return visit_word(storage, channels, launch, rows, base, image);
}

}  // namespace perfconv::cuda
