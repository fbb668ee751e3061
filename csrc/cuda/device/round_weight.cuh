// A copy of a weight with its elements rounded to tf32, for wgmma_tf32.cuh.
#pragma once

#include "cuda/device/gemm_args.cuh"
#include "cuda/device/grid.cuh"
#include "cuda/device/ptx.cuh"

namespace perfconv::cuda {

constexpr int kRoundThreads = 256;

// runs: of four elements. Static for the reason of finish_kernel (implicit_gemm.cuh).
static __global__ void __launch_bounds__(kRoundThreads)
    round_weight_kernel(const uint4* __restrict__ weight, int64_t runs,
                        uint4* __restrict__ rounded) {
  const int64_t threads = int64_t{gridDim.x} * kRoundThreads;
  for (int64_t i = int64_t{blockIdx.x} * kRoundThreads + threadIdx.x; i < runs; i += threads) {
    const uint4 run = weight[i];
    rounded[i] = make_uint4(ptx::round_to_tf32(run.x), ptx::round_to_tf32(run.y),
                            ptx::round_to_tf32(run.z), ptx::round_to_tf32(run.w));
  }
}

// Bytes of the rounded copy of a weight, in front of the partial sums in the workspace.
inline int64_t rounded_bytes(StorageType storage, int64_t elements) {
  return storage == StorageType::kFloat ? elements * static_cast<int64_t>(sizeof(float)) : 0;
}

// Puts the rounded copy of B, so many elements, into the workspace; args.partials comes behind it.
static cudaError_t round_weight(const LaunchContext& context, StorageType storage, int64_t elements,
                                GemmArgs* args) {
  if (storage != StorageType::kFloat || elements == 0) return cudaSuccess;
  const int64_t runs = elements / 4;  // depths are multiples of 32
  const unsigned blocks = grid_blocks(context, runs, kRoundThreads, 8);
  float* rounded = args->partials;
  round_weight_kernel<<<blocks, kRoundThreads, 0, context.stream>>>(
      static_cast<const uint4*>(args->b), runs, reinterpret_cast<uint4*>(rounded));
  args->b = rounded;
  args->partials = rounded + elements;
  return cudaGetLastError();
}

}  // namespace perfconv::cuda
