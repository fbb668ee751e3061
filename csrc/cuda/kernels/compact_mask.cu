// Mask compaction: the flat positions of the True pixels in ascending order, and their count.
//
// Two kernels, no atomics: count_kernel writes how many active pixels each section of kSection
// pixels has; write_kernel adds the counts of the sections before its own, ranks its pixels by
// ballot and writes them. Thread t of a block owns kPixels neighbouring pixels.
//   workspace: int32 counts[sections], int32 sums[section groups] for masks beyond kDirect sections
// The order is a pure function of the mask, so every sum over the list has one order.
#include "cuda/device/grid.cuh"
#include "cuda/kernels/launch.h"

namespace perfconv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPixels = 8;  // of one thread
constexpr int kSection = kThreads * kPixels;
constexpr int kWarps = kThreads / 32;

// The thread's pixels as bits; bit i is pixel begin + i.
__device__ __forceinline__ unsigned load_bits(const MaskArgs& mask, int64_t begin, int64_t pixels) {
  const int64_t image = mask.height * mask.width;
  int64_t place = mask.is_shared ? begin % image : begin;
  unsigned bits = 0;
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    if (begin + i < pixels && mask.mask[place] != 0) bits |= 1u << i;
    if (++place == image && mask.is_shared) place = 0;
  }
  return bits;
}

// Sum over the block, in every thread. shared needs kWarps entries.
__device__ __forceinline__ int block_sum(int value, int* shared) {
  value = __reduce_add_sync(~0u, value);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();  // sums of the warps readable
  int sum = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum += shared[w];
  __syncthreads();  // shared may be written again
  return sum;
}

__global__ void __launch_bounds__(kThreads)
    count_kernel(const MaskArgs mask, int32_t* __restrict__ counts) {
  __shared__ int warp_sums[kWarps];
  const int64_t begin = int64_t{blockIdx.x} * kSection + threadIdx.x * kPixels;
  const int count = __popc(load_bits(mask, begin, mask.pixels()));
  const int sum = block_sum(count, warp_sums);
  if (threadIdx.x == 0) counts[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads)
    write_kernel(const MaskArgs mask, const int32_t* __restrict__ counts, int sections,
                 int32_t* __restrict__ active_idx, int32_t* __restrict__ total) {
  __shared__ int warp_sums[kWarps];
  int before = 0;
  int all = 0;
  for (int i = threadIdx.x; i < sections; i += kThreads) {
    all += counts[i];
    if (i < static_cast<int>(blockIdx.x)) before += counts[i];
  }
  before = block_sum(before, warp_sums);
  all = block_sum(all, warp_sums);
  const int64_t pixels = mask.pixels();
  const int64_t begin = int64_t{blockIdx.x} * kSection + threadIdx.x * kPixels;
  const unsigned bits = load_bits(mask, begin, pixels);
  const int own = __popc(bits);
  const int lane = threadIdx.x % 32;
  int inclusive = own;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(~0u, inclusive, step);
    if (lane >= step) inclusive += other;
  }
  if (lane == 31) warp_sums[threadIdx.x / 32] = inclusive;
  __syncthreads();  // sums of the warps readable
  int rank = before + inclusive - own;
  for (int w = 0; w < static_cast<int>(threadIdx.x) / 32; ++w) rank += warp_sums[w];
  for (int i = 0; i < kPixels; ++i) {
    if ((bits >> i & 1u) != 0) active_idx[rank++] = static_cast<int32_t>(begin + i);
  }
  // Entries past the count, each block those of its own pixels: position p < pixels, p >= all.
  for (int i = 0; i < kPixels; ++i) {
    if (begin + i < pixels && begin + i >= all) active_idx[begin + i] = -1;
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) *total = all;
}

__global__ void __launch_bounds__(kThreads)
    image_count_kernel(const MaskArgs mask, int32_t* __restrict__ image_counts) {
  __shared__ int warp_sums[kWarps];
  const int64_t pixels = mask.height * mask.width;
  const uint8_t* image = mask.mask + (mask.is_shared ? 0 : int64_t{blockIdx.x} * pixels);
  int count = 0;
  for (int64_t i = threadIdx.x; i < pixels; i += kThreads) count += image[i] != 0;
  count = block_sum(count, warp_sums);
  if (threadIdx.x == 0) image_counts[blockIdx.x] = count;
}

}  // namespace

int64_t compact_mask_workspace(int64_t pixels) {
  return ceil_div(pixels, kSection) * static_cast<int64_t>(sizeof(int32_t));
}

cudaError_t launch_compact_mask(const LaunchContext& context, const MaskArgs& mask, void* workspace,
                                int32_t* active_idx, int32_t* count, int32_t* image_counts) {
  const int64_t pixels = mask.pixels();
  if (image_counts != nullptr && mask.images > 0) {
    image_count_kernel<<<static_cast<unsigned>(mask.images), kThreads, 0, context.stream>>>(
        mask, image_counts);
  }
  if (pixels == 0) return cudaMemsetAsync(count, 0, sizeof(int32_t), context.stream);
  const auto sections = static_cast<unsigned>(ceil_div(pixels, kSection));
  auto* counts = static_cast<int32_t*>(workspace);
  count_kernel<<<sections, kThreads, 0, context.stream>>>(mask, counts);
  write_kernel<<<sections, kThreads, 0, context.stream>>>(mask, counts, static_cast<int>(sections),
                                                          active_idx, count);
  return cudaGetLastError();
}

}  // namespace perfconv::cuda
