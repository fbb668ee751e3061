// The ring between a warpgroup that copies and two that multiply: stages of 64 deep, each with a
// barrier for `full` and one for `empty`.
#pragma once

#include "cuda/device/gemm_tile.cuh"
#include "cuda/device/ptx_sm90a.cuh"

namespace perfconv::cuda {

constexpr int kWarpgroup = 128;  // threads that multiply together

// A place in a ring and the parity of its phase.
template <int kPlaces>
struct RingPlace {
  uint32_t place = 0;
  uint32_t parity = 0;

  __device__ void advance() {
    if (++place < kPlaces) return;
    place = 0;
    parity ^= 1;
  }
};

// Byte offset of a chunk in rows of 128 bytes; callers add multiples of eight rows afterwards.
__device__ __forceinline__ uint32_t swizzled(uint32_t row, uint32_t chunk) {
  return row * 128 + ((chunk ^ row % 8) * kChunkBytes);
}

// Multiplies a number of steps; a stage is released when the multiplications that read it are done.
// a_offset: bytes from a stage to the warpgroup's part of A. B lies at Tile::kABytes.
template <class Tile, class Shared>
__device__ __forceinline__ void multiply_stages(int steps, uint32_t a_offset, Shared& shared,
                                                RingPlace<Tile::kStages>& stage,
                                                float (&sums)[Tile::kSums]) {
  using T = typename Tile::Element;
  constexpr bool kIsAMMajor = Tile::kIsAMMajor;
  constexpr bool kIsBNMajor = Tile::kIsBNMajor;
  constexpr int kInstructions = 4;  // 64 deep, 16 each
  const uint32_t ring = ptx::shared_address(shared.ring);
  const uint32_t full = ptx::shared_address(shared.full);
  const uint32_t empty = ptx::shared_address(shared.empty);
  const bool is_first_lane = threadIdx.x % kWarp == 0;
  uint32_t last = 0;
  for (int step = 0; step < steps; ++step) {
    ptx::wait_for_phase(full + stage.place * 8, stage.parity);
    ptx::fence_async_proxy();  // copies readable for wgmma
    const uint32_t tile = ring + stage.place * Tile::kStageBytes;
    const uint64_t a = ptx::operand_descriptor(tile + a_offset, Tile::kBlockBytes);
    const uint64_t b = ptx::operand_descriptor(tile + Tile::kABytes, Tile::kBlockBytes);
    ptx::fence_sums();
#pragma unroll
    for (int i = 0; i < kInstructions; ++i) {
      ptx::multiply_add_async<T, kIsAMMajor, kIsBNMajor>(sums, a + (kIsAMMajor ? 128 : 2) * i,
                                                         b + (kIsBNMajor ? 128 : 2) * i);
    }
    ptx::commit_products();
    ptx::wait_products<1>();
    if (step > 0 && is_first_lane) ptx::arrive(empty + last * 8);
    last = stage.place;
    stage.advance();
  }
  ptx::wait_products<0>();
  ptx::pin(sums);
  if (steps > 0 && is_first_lane) ptx::arrive(empty + last * 8);
}

}  // namespace perfconv::cuda
