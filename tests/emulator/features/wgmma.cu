// What the warp-specialised kernels do with barriers, through the product's own wrappers: one warp
// copies, another one reads; and the ways to get it wrong.
#include <cstdint>

#include "feature.h"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
namespace {
__global__ void relay(const int4*, int4*, int, int) {}
__global__ void proxy(const uint4*, float*, int) {}
}  // namespace
#else
#include "cuda/device/ptx_sm90a.cuh"

namespace {

namespace ptx = perfconv::cuda::ptx;

enum Wrong { kNothing, kWaitsForNoCopies, kWrongParity, kNoWaitForFree, kArrivesEarly, kNoArrival };
constexpr int kPlaces = 2;

// Warp 0 copies rounds of 32 x 16 bytes into a ring, warp 1 writes them out.
__global__ void __launch_bounds__(64) relay(const int4* in, int4* out, int rounds, int wrong) {
  __shared__ int4 ring[kPlaces][32];
  __shared__ uint64_t full[kPlaces];
  __shared__ uint64_t empty[kPlaces];
  const unsigned lane = threadIdx.x % 32;
  if (threadIdx.x < kPlaces) {
    ptx::start_barrier(ptx::shared_address(&full[threadIdx.x]), 32);
    ptx::start_barrier(ptx::shared_address(&empty[threadIdx.x]), 1);
  }
  __syncthreads();
  for (int round = 0; round < rounds; ++round) {
    const int place = round % kPlaces;
    const uint32_t parity = round / kPlaces & 1;
    const uint32_t is_full = ptx::shared_address(&full[place]);
    const uint32_t is_empty = ptx::shared_address(&empty[place]);
    if (threadIdx.x < 32) {
      if (wrong != kNoWaitForFree) ptx::wait_for_phase(is_empty, parity ^ 1);
      ptx::copy_16_async(ptx::shared_address(&ring[place][lane]), in + round * 32 + lane, true);
      wrong == kArrivesEarly ? ptx::arrive(is_full) : ptx::arrive_after_copies(is_full);
    } else {
      if (wrong != kWaitsForNoCopies) {
        ptx::wait_for_phase(is_full, wrong == kWrongParity ? parity ^ 1 : parity);
      }
      out[round * 32 + lane] = ring[place][31 - lane];
      __syncwarp();
      if (lane == 0 && wrong != kNoArrival) ptx::arrive(is_empty);
    }
  }
}

enum Fence { kByReader, kByWriter, kByNobody, kBeforeTheWait };

// out (64 x 64) = a a^T for 64 elements of depth, written to shared memory by ordinary stores of
// one warpgroup and multiplied by another.
__global__ void __launch_bounds__(256) proxy(const uint4* a, float* out, int fence) {
  __shared__ __align__(1024) uint4 tile[64 * 8];
  __shared__ uint64_t full;
  const auto t = static_cast<int>(threadIdx.x % 128);
  const uint32_t is_full = ptx::shared_address(&full);
  if (threadIdx.x == 0) ptx::start_barrier(is_full, 128);
  __syncthreads();
  if (threadIdx.x < 128) {
    for (int i = t; i < 64 * 8; i += 128) tile[i / 8 * 8 + (i % 8 ^ (i / 8 & 7))] = a[i];
    if (fence == kByWriter) ptx::fence_async_proxy();
    ptx::arrive(is_full);
    return;
  }
  if (fence == kBeforeTheWait) ptx::fence_async_proxy();
  ptx::wait_for_phase(is_full, 0);
  if (fence == kByReader) ptx::fence_async_proxy();
  const uint64_t operand = ptx::operand_descriptor(ptx::shared_address(tile), 0);
  float sums[32] = {};
  ptx::fence_sums();
  for (int k = 0; k < 4; ++k) {
    ptx::multiply_add_async<__half, false, false>(sums, operand + 2 * k, operand + 2 * k);
  }
  ptx::commit_products();
  ptx::wait_products<0>();
  ptx::pin(sums);
  for (int e = 0; e < 32; ++e) {
    const int row = t / 32 * 16 + t % 32 / 4 + e / 2 % 2 * 8;
    out[row * 64 + e / 4 * 8 + t % 4 * 2 + e % 2] = sums[e];
  }
}

}  // namespace
#endif

namespace {

const Feature kList[] = {
    {"relay",
     [](const Arguments& a) {
       relay<<<1, 64, 0, a.stream>>>(a.at<int4>(0), a.at<int4>(1), a.number[0], a.number[1]);
       return cudaGetLastError();
     }},
    {"proxy",
     [](const Arguments& a) {
       proxy<<<1, 256, 0, a.stream>>>(a.at<uint4>(0), a.at<float>(1), a.number[0]);
       return cudaGetLastError();
     }},
};
const Features kFeatures(kList);

}  // namespace
