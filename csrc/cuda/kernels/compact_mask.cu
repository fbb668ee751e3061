// Mask compaction: the flat positions of the True pixels in ascending order, and their count.
//
//   count_kernel  counts[s] = active pixels of section s; a block a section of kCompactSection
//   group_kernel  sums[g] = counts of kGroup sections; for masks of more than kGroup sections only
//   write_kernel  adds what lies before its section, ranks its pixels by a scan over the block,
//                 lists them in shared memory and copies the list out
// Thread t of a block owns kPixels neighbouring pixels, one 8-byte load.
//   workspace: int32 counts[sections], sums[groups]
// The order is a pure function of the mask, so every sum over the list has one order. The only
// atomics add integers (image counts), where order does not matter.
#include "cuda/device/grid.cuh"
#include "cuda/kernels/launch.h"

namespace perfconv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPixels = 8;   // of one thread
constexpr int kGroup = 512;  // sections whose counts a block adds without help
constexpr int kWarps = kThreads / 32;
constexpr int kSection = kThreads * kPixels;
static_assert(kSection == kCompactSection, "the section is what a block takes");

// The thread's pixels as bits; bit i is pixel begin + i.
__device__ __forceinline__ unsigned load_bits(const MaskArgs& mask, int64_t begin, int64_t pixels) {
  const int64_t image = mask.height * mask.width;
  const int64_t end = mask.is_shared ? image : pixels;
  int64_t place = mask.is_shared ? begin % image : begin;
  const uint8_t* from = mask.mask + place;
  unsigned bits = 0;
  if (begin + kPixels <= pixels && place + kPixels <= end &&
      reinterpret_cast<uintptr_t>(from) % kPixels == 0) {
    const uint64_t word = *reinterpret_cast<const uint64_t*>(from);
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      if ((word >> 8 * i & 0xff) != 0) bits |= 1u << i;
    }
    return bits;
  }
  for (int i = 0; i < kPixels && begin + i < pixels; ++i) {
    if (mask.mask[place] != 0) bits |= 1u << i;
    if (++place == end) place = 0;  // the next image of a shared mask
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

// Sum of values[0 .. end) over the block; shared as above.
__device__ __forceinline__ int block_sum_of(const int32_t* values, int end, int* shared) {
  int sum = 0;
  for (int i = threadIdx.x; i < end; i += kThreads) sum += values[i];
  return block_sum(sum, shared);
}

__global__ void __launch_bounds__(kThreads)
    count_kernel(const MaskArgs mask, int32_t* __restrict__ counts,
                 int32_t* __restrict__ image_counts) {
  __shared__ int warp_sums[kWarps];
  const int64_t begin = int64_t{blockIdx.x} * kSection + threadIdx.x * kPixels;
  const int sum = block_sum(__popc(load_bits(mask, begin, mask.pixels())), warp_sums);
  if (threadIdx.x == 0) counts[blockIdx.x] = sum;
  if (image_counts == nullptr) return;
  const int64_t threads = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < mask.images; i += threads) {
    image_counts[i] = 0;  // write_kernel adds to it
  }
}

__global__ void __launch_bounds__(kThreads)
    group_kernel(const int32_t* __restrict__ counts, int sections, int32_t* __restrict__ sums) {
  __shared__ int warp_sums[kWarps];
  const int first = static_cast<int>(blockIdx.x) * kGroup;
  const int sum = block_sum_of(counts + first, min(kGroup, sections - first), warp_sums);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// Adds the active pixels of a warp to the counts of their images; first is the warp's first pixel.
// Called by whole warps.
__device__ void add_image_counts(unsigned bits, uint32_t first, uint32_t image_pixels,
                                 int32_t* image_counts) {
  constexpr uint32_t kWarpPixels = 32 * kPixels;
  const uint32_t image = first / image_pixels;
  if (image == (first + kWarpPixels - 1) / image_pixels) {
    const int sum = __reduce_add_sync(~0u, __popc(bits));
    if (threadIdx.x % 32 == 0 && sum != 0) atomicAdd(image_counts + image, sum);
    return;
  }
  const uint32_t own = first + threadIdx.x % 32 * kPixels;
  for (int i = 0; i < kPixels; ++i) {
    if ((bits >> i & 1u) != 0) atomicAdd(image_counts + (own + i) / image_pixels, 1);
  }
}

// sums is null where the counts are few enough to be added directly.
__global__ void __launch_bounds__(kThreads)
    write_kernel(const MaskArgs mask, const int32_t* __restrict__ counts,
                 const int32_t* __restrict__ sums, int sections, int32_t* __restrict__ active_idx,
                 int32_t* __restrict__ total, int32_t* __restrict__ image_counts) {
  __shared__ int warp_sums[kWarps];
  __shared__ int32_t listed[kSection];  // active pixels of the section
  const int section = static_cast<int>(blockIdx.x);
  const int group = sums == nullptr ? 0 : section / kGroup;
  const int all = sums == nullptr ? block_sum_of(counts, sections, warp_sums)
                                  : block_sum_of(sums, ceil_div(sections, kGroup), warp_sums);
  int before = block_sum_of(counts + group * kGroup, section - group * kGroup, warp_sums);
  if (group > 0) before += block_sum_of(sums, group, warp_sums);

  const int64_t pixels = mask.pixels();
  const int64_t section_begin = int64_t{section} * kSection;
  const int64_t begin = section_begin + threadIdx.x * kPixels;
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
  int rank = inclusive - own;
  int active = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w < static_cast<int>(threadIdx.x) / 32) rank += warp_sums[w];
    active += warp_sums[w];
  }
  for (int i = 0; i < kPixels; ++i) {
    if ((bits >> i & 1u) != 0) listed[rank++] = static_cast<int32_t>(begin + i);
  }
  __syncthreads();  // list readable
  for (int i = threadIdx.x; i < active; i += kThreads) active_idx[before + i] = listed[i];
  // Entries past the count: each block those at the positions of its own pixels.
  const int64_t section_end = min(section_begin + kSection, pixels);
  const int64_t unused = max(section_begin, int64_t{all}) + threadIdx.x;
  for (int64_t i = unused; i < section_end; i += kThreads) active_idx[i] = -1;
  if (section == 0 && threadIdx.x == 0) *total = all;
  if (image_counts != nullptr) {
    const auto warp_begin = static_cast<uint32_t>(begin) - lane * kPixels;
    add_image_counts(bits, warp_begin, static_cast<uint32_t>(mask.height * mask.width),
                     image_counts);
  }
}

int64_t sections_of(int64_t pixels) { return ceil_div(pixels, kSection); }
int64_t groups_of(int64_t sections) { return sections > kGroup ? ceil_div(sections, kGroup) : 0; }

// Nothing to list: the counts alone are written.
cudaError_t write_empty(const LaunchContext& context, int64_t images, int32_t* count,
                        int32_t* image_counts) {
  if (image_counts != nullptr && images > 0) {
    const cudaError_t status = cudaMemsetAsync(
        image_counts, 0, static_cast<size_t>(images) * sizeof(int32_t), context.stream);
    if (status != cudaSuccess) return status;
  }
  return cudaMemsetAsync(count, 0, sizeof(int32_t), context.stream);
}

}  // namespace

int64_t compact_mask_workspace(int64_t pixels) {
  const int64_t sections = sections_of(pixels);
  return (sections + groups_of(sections)) * static_cast<int64_t>(sizeof(int32_t));
}

cudaError_t launch_write_active(const LaunchContext& context, const MaskArgs& mask, void* workspace,
                                int32_t* active_idx, int32_t* count, int32_t* image_counts) {
  if (mask.pixels() == 0) return write_empty(context, mask.images, count, image_counts);
  const int64_t sections = sections_of(mask.pixels());
  const int64_t groups = groups_of(sections);
  auto* counts = static_cast<int32_t*>(workspace);
  int32_t* sums = groups > 0 ? counts + sections : nullptr;
  if (groups > 0) {
    group_kernel<<<static_cast<unsigned>(groups), kThreads, 0, context.stream>>>(
        counts, static_cast<int>(sections), sums);
  }
  write_kernel<<<static_cast<unsigned>(sections), kThreads, 0, context.stream>>>(
      mask, counts, sums, static_cast<int>(sections), active_idx, count, image_counts);
  return cudaGetLastError();
}

cudaError_t launch_compact_mask(const LaunchContext& context, const MaskArgs& mask, void* workspace,
                                int32_t* active_idx, int32_t* count, int32_t* image_counts) {
  if (mask.pixels() == 0) return write_empty(context, mask.images, count, image_counts);
  const auto sections = static_cast<unsigned>(sections_of(mask.pixels()));
  count_kernel<<<sections, kThreads, 0, context.stream>>>(mask, static_cast<int32_t*>(workspace),
                                                          image_counts);
  return launch_write_active(context, mask, workspace, active_idx, count, image_counts);
}

}  // namespace perfconv::cuda
