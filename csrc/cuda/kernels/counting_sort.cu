// Stable counting sort of items by their keys: at most 512 bins, three kernels for any number of
// lists of the same length.
//
// A list is cut into sections of neighbouring items, a block each; blocks along y take the lists.
//   sort_count_kernel  how many items of each bin a section has
//   sort_scan_kernel   block = bin: adds up the sections before each section, and the bin's total
//   sort_write_kernel  rank of an item = bins before its own + sections before its own + warps
//                      before its own + earlier items of its warp, which one ballot of equal keys
//                      counts
//   workspace: int32 totals[lists][bins], counts[lists][bins][sections]
//   shared (write): 8 x 512 + 512 counters
// The only atomics count into shared memory, so the order is a pure function of the keys.
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

// One list, that of the block, and what the workspace keeps for it.
struct List {
  const uint32_t* keys;
  int32_t* totals;
  int32_t* counts;
};

struct SortPlan {
  SortArgs sort;
  Sections sections;
  int32_t* workspace;

  __device__ int bins() const { return 1 << sort.bits; }
  __device__ List list() const {
    const int64_t number = blockIdx.y;
    return {sort.keys + number * sort.capacity, workspace + number * bins(),
            workspace + (int64_t{gridDim.y} + number * sections.count) * bins()};
  }
  __device__ int64_t end(int64_t begin, int64_t items) const {
    return begin + items < sort.capacity ? begin + items : sort.capacity;
  }
};

__global__ void __launch_bounds__(kThreads)
    sort_count_kernel(const __grid_constant__ SortPlan plan) {
  __shared__ int histogram[kMostBins];
  const List list = plan.list();
  for (int bin = threadIdx.x; bin < plan.bins(); bin += kThreads) histogram[bin] = 0;
  __syncthreads();  // counters are zero
  const int64_t begin = blockIdx.x * plan.sections.items;
  const int64_t end = plan.end(begin, plan.sections.items);
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads)
    atomicAdd(&histogram[list.keys[i]], 1);
  __syncthreads();  // counters are final
  for (int bin = threadIdx.x; bin < plan.bins(); bin += kThreads) {
    list.counts[int64_t{bin} * plan.sections.count + blockIdx.x] = histogram[bin];
  }
}

// counts[bin][s] becomes the sum over the sections before s.
__global__ void __launch_bounds__(kThreads)
    sort_scan_kernel(const __grid_constant__ SortPlan plan) {
  __shared__ int warp_sums[kWarps];
  const List list = plan.list();
  const int sections = plan.sections.count;
  int32_t* row = list.counts + int64_t{blockIdx.x} * sections;
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
  if (threadIdx.x == 0) list.totals[blockIdx.x] = scan.total;
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
    sort_write_kernel(const __grid_constant__ SortPlan plan, int32_t* __restrict__ sorted,
                      int32_t* __restrict__ starts) {
  __shared__ int next[kWarps][kMostBins];  // first the counts of a warp, then where it writes next
  __shared__ int bin_starts[kMostBins];
  __shared__ int warp_sums[kWarps];
  const List list = plan.list();
  const int bins = plan.bins();
  sorted += blockIdx.y * plan.sort.capacity;
  if (starts != nullptr) starts += blockIdx.y * (int64_t{bins} + 1);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int bin = lane; bin < bins; bin += 32) next[warp][bin] = 0;
  find_starts(list.totals, bins, bin_starts, warp_sums, starts);
  __syncthreads();  // counters are zero, starts readable

  const int64_t share = plan.sections.items / kWarps;
  const int64_t begin = blockIdx.x * plan.sections.items + warp * share;
  const int64_t end = plan.end(begin, share);
  for (int64_t i = begin + lane; i < end; i += 32) atomicAdd(&next[warp][list.keys[i]], 1);
  __syncthreads();  // counts of the warps readable
  for (int bin = threadIdx.x; bin < bins; bin += kThreads) {
    int place = bin_starts[bin] + list.counts[int64_t{bin} * plan.sections.count + blockIdx.x];
    for (int w = 0; w < kWarps; ++w) {
      const int own = next[w][bin];
      next[w][bin] = place;
      place += own;
    }
  }
  __syncthreads();  // places readable

  for (int64_t first = begin; first < end; first += 32) {
    const bool is_item = first + lane < end;
    const int key = is_item ? static_cast<int>(list.keys[first + lane]) : kMostBins;
    const unsigned equals = __match_any_sync(~0u, key);
    const int earlier = __popc(equals & ((1u << lane) - 1));
    int place = 0;
    if (is_item) place = next[warp][key];
    __syncwarp();  // every lane has read its place
    if (is_item && earlier == 0) next[warp][key] = place + __popc(equals);
    __syncwarp();  // places of the next round readable
    if (is_item) sorted[place + earlier] = static_cast<int32_t>(first + lane);
  }
}

}  // namespace

int64_t counting_sort_workspace(const SortArgs& args) {
  return (args.lists * (int64_t{cut(args.capacity).count} + 1) << args.bits) *
         static_cast<int64_t>(sizeof(int32_t));
}

cudaError_t launch_counting_sort(const LaunchContext& context, const SortArgs& args,
                                 void* workspace, int32_t* sorted, int32_t* starts) {
  const unsigned bins = 1u << args.bits;
  const Sections sections = cut(args.capacity);
  if (sections.count == 0) {
    return starts == nullptr ? cudaSuccess
                             : cudaMemsetAsync(starts, 0, args.lists * (bins + 1) * sizeof(int32_t),
                                               context.stream);
  }
  const auto lists = static_cast<unsigned>(args.lists);
  const dim3 blocks(static_cast<unsigned>(sections.count), lists);
  const SortPlan plan{args, sections, static_cast<int32_t*>(workspace)};
  sort_count_kernel<<<blocks, kThreads, 0, context.stream>>>(plan);
  sort_scan_kernel<<<dim3(bins, lists), kThreads, 0, context.stream>>>(plan);
  sort_write_kernel<<<blocks, kThreads, 0, context.stream>>>(plan, sorted, starts);
  return cudaGetLastError();
}

}  // namespace perfconv::cuda
