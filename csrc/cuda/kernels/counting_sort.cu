// Stable counting sort of items by one digit of their keys: at most 512 bins, three kernels.
//
// The list is cut into sections of neighbouring items, a block each.
//   sort_count_kernel  how many items of each bin a section has
//   sort_scan_kernel   block = bin: adds up the sections before each section, and the bin's total
//   sort_write_kernel  rank of an item = bins before its own + sections before its own + warps
//   before
//                 its own + earlier items of its warp, which one ballot of equal digits counts
//   workspace: int32 counts[bins][sections], totals[bins]; shared (write): 8 x 512 + 512 counters
// The only atomics count into shared memory, so the order is a pure function of the keys. Sorting
// by the digits of a long key, lowest first, sorts by the whole key.
#include "cuda/device/block_scan.cuh"
#include "cuda/device/grid.cuh"
#include "cuda/kernels/launch.h"

namespace perfconv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kMostBits = 9;
constexpr int kMostBins = 1 << kMostBits;
constexpr int64_t kSectionItems = 2048;  // at least; a multiple of kThreads
constexpr int64_t kMostSections = 1024;
constexpr int kScanned = kMostSections / kThreads;  // sections of one thread in sort_scan_kernel

static_assert(kSectionItems % kThreads == 0, "warps share a section in whole rounds of 32 items");
static_assert(kMostBins == 2 * kThreads, "a thread of sort_write_kernel scans two bins");

// How the list is cut.
struct Sections {
  int64_t items;  // of one section
  int count;
};

Sections cut(int64_t capacity) {
  const int64_t least = ceil_div(ceil_div(capacity, kMostSections), kThreads) * kThreads;
  const int64_t items = least > kSectionItems ? least : kSectionItems;
  return {items, static_cast<int>(ceil_div(capacity, items))};
}

struct Digits {
  SortArgs sort;
  int64_t section_items;
  int sections;

  __device__ int64_t count() const { return sort.count == nullptr ? sort.capacity : *sort.count; }
  __device__ int32_t item(int64_t i) const {
    return sort.items == nullptr ? static_cast<int32_t>(i) : sort.items[i];
  }
  __device__ int digit(int32_t item) const {
    return static_cast<int>(sort.keys[item] >> sort.shift & ((1u << sort.bits) - 1));
  }
};

__global__ void __launch_bounds__(kThreads)
    sort_count_kernel(const __grid_constant__ Digits digits, int32_t* __restrict__ counts) {
  __shared__ int histogram[kMostBins];
  const int bins = 1 << digits.sort.bits;
  for (int bin = threadIdx.x; bin < bins; bin += kThreads) histogram[bin] = 0;
  __syncthreads();  // counters are zero
  const int64_t begin = blockIdx.x * digits.section_items;
  const int64_t count = digits.count();
  const int64_t end = begin + digits.section_items < count ? begin + digits.section_items : count;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    atomicAdd(&histogram[digits.digit(digits.item(i))], 1);
  }
  __syncthreads();  // counters are final
  for (int bin = threadIdx.x; bin < bins; bin += kThreads) {
    counts[int64_t{bin} * digits.sections + blockIdx.x] = histogram[bin];
  }
}

// counts[bin][s] becomes the sum over the sections before s.
__global__ void __launch_bounds__(kThreads)
    sort_scan_kernel(int sections, int32_t* __restrict__ counts, int32_t* __restrict__ totals) {
  __shared__ int warp_sums[kWarps];
  int32_t* row = counts + int64_t{blockIdx.x} * sections;
  const int first = static_cast<int>(threadIdx.x) * kScanned;
  int own[kScanned];
  int sum = 0;
#pragma unroll
  for (int i = 0; i < kScanned; ++i) {
    own[i] = first + i < sections ? row[first + i] : 0;
    sum += own[i];
  }
  const BlockScan<kThreads> scan = block_scan<kThreads>(sum, warp_sums);
  int before = scan.before;
#pragma unroll
  for (int i = 0; i < kScanned; ++i) {
    if (first + i < sections) row[first + i] = before;
    before += own[i];
  }
  if (threadIdx.x == 0) totals[blockIdx.x] = scan.total;
}

// Where the bins begin, in shared memory; starts (bins + 1 entries) may be null.
__device__ __forceinline__ void find_starts(const int32_t* totals, int bins, int* bin_starts,
                                            int* warp_sums, int32_t* starts) {
  const int first = static_cast<int>(threadIdx.x) * 2;
  const int low = first < bins ? totals[first] : 0;
  const int high = first + 1 < bins ? totals[first + 1] : 0;
  const BlockScan<kThreads> scan = block_scan<kThreads>(low + high, warp_sums);
  bin_starts[first] = scan.before;
  bin_starts[first + 1] = scan.before + low;
  if (starts == nullptr || blockIdx.x != 0) return;
  if (first < bins) starts[first] = scan.before;
  if (first + 1 < bins) starts[first + 1] = scan.before + low;
  if (threadIdx.x == 0) starts[bins] = scan.total;
}

__global__ void __launch_bounds__(kThreads)
    sort_write_kernel(const __grid_constant__ Digits digits, const int32_t* __restrict__ counts,
                      const int32_t* __restrict__ totals, int32_t* __restrict__ sorted,
                      int32_t* __restrict__ starts) {
  __shared__ int next[kWarps][kMostBins];  // first the counts of a warp, then where it writes next
  __shared__ int bin_starts[kMostBins];
  __shared__ int warp_sums[kWarps];
  const int bins = 1 << digits.sort.bits;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int bin = lane; bin < bins; bin += 32) next[warp][bin] = 0;
  find_starts(totals, bins, bin_starts, warp_sums, starts);
  __syncthreads();  // counters are zero, starts readable

  const int64_t share = digits.section_items / kWarps;
  const int64_t begin = blockIdx.x * digits.section_items + warp * share;
  const int64_t count = digits.count();
  const int64_t end = begin + share < count ? begin + share : count;
  for (int64_t i = begin + lane; i < end; i += 32) {
    atomicAdd(&next[warp][digits.digit(digits.item(i))], 1);
  }
  __syncthreads();  // counts of the warps readable
  for (int bin = threadIdx.x; bin < bins; bin += kThreads) {
    int place = bin_starts[bin] + counts[int64_t{bin} * digits.sections + blockIdx.x];
    for (int w = 0; w < kWarps; ++w) {
      const int own = next[w][bin];
      next[w][bin] = place;
      place += own;
    }
  }
  __syncthreads();  // places readable

  for (int64_t first = begin; first < end; first += 32) {
    const bool is_item = first + lane < end;
    const int32_t item = is_item ? digits.item(first + lane) : 0;
    const int digit = is_item ? digits.digit(item) : kMostBins;
    const unsigned equals = __match_any_sync(~0u, digit);
    const int earlier = __popc(equals & ((1u << lane) - 1));
    int place = 0;
    if (is_item) place = next[warp][digit];
    __syncwarp();  // every lane has read its place
    if (is_item && earlier == 0) next[warp][digit] = place + __popc(equals);
    __syncwarp();  // places of the next round readable
    if (is_item) sorted[place + earlier] = item;
  }
}

}  // namespace

int64_t counting_sort_workspace(int64_t capacity, int bits) {
  return ((int64_t{cut(capacity).count} + 1) << bits) * static_cast<int64_t>(sizeof(int32_t));
}

cudaError_t launch_counting_sort(const LaunchContext& context, const SortArgs& args,
                                 void* workspace, int32_t* sorted, int32_t* starts) {
  const unsigned bins = 1u << args.bits;
  const Sections sections = cut(args.capacity);
  if (sections.count == 0) {
    return starts == nullptr
               ? cudaSuccess
               : cudaMemsetAsync(starts, 0, (bins + 1) * sizeof(int32_t), context.stream);
  }
  const auto blocks = static_cast<unsigned>(sections.count);
  auto* totals = static_cast<int32_t*>(workspace);
  int32_t* counts = totals + bins;
  const Digits digits{args, sections.items, sections.count};
  sort_count_kernel<<<blocks, kThreads, 0, context.stream>>>(digits, counts);
  sort_scan_kernel<<<bins, kThreads, 0, context.stream>>>(sections.count, counts, totals);
  sort_write_kernel<<<blocks, kThreads, 0, context.stream>>>(digits, counts, totals, sorted,
                                                             starts);
  return cudaGetLastError();
}

}  // namespace perfconv::cuda
