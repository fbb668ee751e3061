// Sums over the active pixels, channel by channel: sums[c] = sum over active p of image[p, c].
//
// Two levels. section_kernel: block (s, k) adds section s of the list for 32 channels; thread
// (lane, row) takes channel 32 k + lane and every eighth pixel of the section, and the eight sums
// are added in order. total_kernel: one thread a channel adds the sections in order.
//   workspace: sums[sections][channels]; shared: 32 x 8 sums
// The number of sections comes from the capacity and their length from the count, so the order of
// every sum depends on the mask alone.
#include "cuda/device/element.cuh"
#include "cuda/device/grid.cuh"
#include "cuda/kernels/launch.h"

namespace perfconv::cuda {
namespace {

constexpr int kLanes = 32;  // channels of a block
constexpr int kRows = 8;    // pixels in flight
constexpr int kThreads = kLanes * kRows;
constexpr int64_t kSectionPixels = 64;  // at least, so that small lists take few blocks
constexpr int64_t kMostSections = 256;  // the second level stays short

int64_t section_count(int64_t capacity) {
  const int64_t wanted = ceil_div(capacity, kSectionPixels);
  return wanted < kMostSections ? wanted : kMostSections;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    section_kernel(const T* __restrict__ image, int64_t channels, const ActiveArgs active,
                   SumType<T>* __restrict__ sums) {
  __shared__ SumType<T> row_sums[kRows][kLanes];
  const int64_t channel = int64_t{blockIdx.y} * kLanes + threadIdx.x;
  const int64_t count = *active.count;
  const int64_t length = (count + gridDim.x - 1) / gridDim.x;
  const int64_t begin = blockIdx.x * length;
  const int64_t end = begin + length < count ? begin + length : count;
  SumType<T> sum = 0;
  if (channel < channels) {
    for (int64_t i = begin + threadIdx.y; i < end; i += kRows) {
      sum += to_sum(image[active.idx[i] * channels + channel]);
    }
  }
  row_sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();  // sums of the rows readable
  if (threadIdx.y != 0 || channel >= channels) return;
#pragma unroll
  for (int row = 1; row < kRows; ++row) sum += row_sums[row][threadIdx.x];
  sums[blockIdx.x * channels + channel] = sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    total_kernel(const SumType<T>* __restrict__ sums, int64_t sections, int64_t channels,
                 T* __restrict__ totals) {
  const int64_t channel = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (channel >= channels) return;
  SumType<T> total = 0;
#pragma unroll 8
  for (int64_t s = 0; s < sections; ++s) total += sums[s * channels + channel];
  totals[channel] = from_sum<T>(total);
}

}  // namespace

int64_t active_sum_workspace(StorageType storage, int64_t channels, int64_t capacity) {
  const int64_t sum_bytes = storage == StorageType::kDouble ? sizeof(double) : sizeof(float);
  return section_count(capacity) * channels * sum_bytes;
}

cudaError_t launch_active_sum(const LaunchContext& context, StorageType storage, const void* image,
                              int64_t channels, const ActiveArgs& active, void* workspace,
                              void* sums) {
  if (channels == 0) return cudaSuccess;
  const int64_t sections = section_count(active.capacity);
  return visit_storage(storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    auto* section_sums = static_cast<SumType<T>*>(workspace);
    if (sections > 0) {
      const dim3 grid(static_cast<unsigned>(sections),
                      static_cast<unsigned>(ceil_div(channels, kLanes)));
      section_kernel<T><<<grid, dim3(kLanes, kRows), 0, context.stream>>>(
          static_cast<const T*>(image), channels, active, section_sums);
    }
    total_kernel<T>
        <<<static_cast<unsigned>(ceil_div(channels, kThreads)), kThreads, 0, context.stream>>>(
            section_sums, sections, channels, static_cast<T*>(sums));
    return cudaGetLastError();
  });
}

}  // namespace perfconv::cuda
