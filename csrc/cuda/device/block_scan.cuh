// Sum over the threads before one's own, and over all of a block.
#pragma once

namespace perfconv::cuda {

template <int kThreads>
struct BlockScan {
  int before;  // sum of the values of the threads before
  int total;
};

// Called by every thread of the block. warp_sums: kThreads / 32 entries of shared memory, which may
// be used again after the next barrier.
template <int kThreads>
__device__ __forceinline__ BlockScan<kThreads> block_scan(int value, int* warp_sums) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  int inclusive = value;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(~0u, inclusive, step);
    if (lane >= step) inclusive += other;
  }
  if (lane == 31) warp_sums[warp] = inclusive;
  __syncthreads();  // sums of the warps readable
  BlockScan<kThreads> scan{inclusive - value, 0};
#pragma unroll
  for (int w = 0; w < kThreads / 32; ++w) {
    const int sum = warp_sums[w];
    if (w < warp) scan.before += sum;
    scan.total += sum;
  }
  return scan;
}

}  // namespace perfconv::cuda
