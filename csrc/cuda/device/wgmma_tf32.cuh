// tf32 on sm_90a. wgmma cuts off the low 13 bits of float32 factors in shared memory, which would
// make every product smaller: factors are rounded to the nearest before, as mma.sync's tiles do. A
// is rounded on its way from shared memory to registers, from which wgmma takes it; B, the weight,
// in a copy that is made first. KERNELS.md K-081.
#pragma once

#include "cuda/device/wgmma_pipeline.cuh"

namespace perfconv::cuda {

// As multiply_stages. While one warpgroup loads and rounds, the other one multiplies.
template <class Tile, class Shared>
__device__ __forceinline__ void multiply_tf32_stages(int steps, uint32_t a_offset, Shared& shared,
                                                     RingPlace<Tile::kStages>& stage,
                                                     float (&sums)[Tile::kSums]) {
  constexpr int kInstructions = 4;  // 32 deep, 8 each
  const uint32_t ring = ptx::shared_address(shared.ring);
  const uint32_t full = ptx::shared_address(shared.full);
  const uint32_t empty = ptx::shared_address(shared.empty);
  const uint32_t lane = threadIdx.x % kWarp;
  const uint32_t row = threadIdx.x % kWarpgroup / kWarp * 16 + lane % 16;
  for (int step = 0; step < steps; ++step) {
    ptx::wait_for_phase(full + stage.place * 8, stage.parity);
    ptx::fence_async_proxy();  // copies readable for wgmma
    const uint32_t tile = ring + stage.place * Tile::kStageBytes;
    uint32_t a[kInstructions][4];
#pragma unroll
    for (int i = 0; i < kInstructions; ++i) {
      ptx::load_matrices(a[i], tile + a_offset + swizzled(row, 2 * i + lane / 16));
#pragma unroll
      for (uint32_t& value : a[i]) value = ptx::round_to_tf32(value);
      ptx::pin(a[i]);
    }
    const uint64_t b = ptx::operand_descriptor(tile + Tile::kABytes, 0);
    ptx::fence_sums();
#pragma unroll
    for (int i = 0; i < kInstructions; ++i) ptx::multiply_add_async(sums, a[i], b + 2 * i);
    ptx::commit_products();
    ptx::wait_products<0>();
    __syncwarp();  // A was read by all lanes
    if (lane == 0) ptx::arrive(empty + stage.place * 8);
    stage.advance();
  }
  ptx::pin(sums);
}

}  // namespace perfconv::cuda
