// Rows of channels as the kernels that move and add them see them: packs of up to 16 bytes, and a
// few neighbouring threads for each row.
#pragma once

#include <cstdint>

#include "cuda/device/element.cuh"

namespace perfconv::cuda {

// Neighbouring elements that are loaded and stored at once.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Elements {
  T values[kCount];
};

// Whether rows of so many bytes, the first ones at these pointers, all start at a multiple of 16
// bytes (host side). Null pointers do not matter.
template <class... Pointers>
bool are_aligned(int64_t row_bytes, const Pointers*... pointers) {
  constexpr uintptr_t kBytes = 16;
  return row_bytes % kBytes == 0 && ((reinterpret_cast<uintptr_t>(pointers) % kBytes == 0) && ...);
}

// Calls function(TypeTag<Word>()) with the unit in which rows are copied: 16 bytes if all rows are
// aligned, else an element (host side).
template <class Function, class... Pointers>
cudaError_t visit_word(StorageType storage, int64_t channels, Function function,
                       const Pointers*... pointers) {
  const int64_t bytes = element_bytes(storage);
  if (are_aligned(bytes * channels, pointers...)) return function(TypeTag<Elements<uint32_t, 4>>());
  if (bytes == 8) return function(TypeTag<uint64_t>());
  if (bytes == 4) return function(TypeTag<uint32_t>());
  return function(TypeTag<uint16_t>());
}

// Calls function(std::integral_constant<int, n>()) with the elements of T that fill 16 bytes if all
// rows are aligned, else 1 (host side).
template <class T, class Function, class... Pointers>
cudaError_t visit_elements(int64_t channels, Function function, const Pointers*... pointers) {
  constexpr int kElements = 16 / sizeof(T);
  if (are_aligned(channels * static_cast<int64_t>(sizeof(T)), pointers...)) {
    return function(std::integral_constant<int, kElements>());
  }
  return function(std::integral_constant<int, 1>());
}

// Threads that share a row: a power of two up to a warp, so that no row straddles warps.
constexpr int threads_of_row(int64_t words) {
  int threads = 1;
  while (threads < 32 && threads < words) threads *= 2;
  return threads;
}

// The rows of a thread in a grid-stride loop, and its place among the threads of a row.
struct RowWalk {
  int64_t first;
  int64_t step;
  int lane;
};

__device__ __forceinline__ RowWalk walk_rows(int row_threads) {
  const unsigned rows_of_block = blockDim.x / row_threads;
  return {int64_t{blockIdx.x} * rows_of_block + threadIdx.x / row_threads,
          int64_t{gridDim.x} * rows_of_block, static_cast<int>(threadIdx.x % row_threads)};
}

}  // namespace perfconv::cuda
