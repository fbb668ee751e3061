// A weight laid out so that the B of a stage of wgmma_gemm.cuh is one run of bytes in global
// memory, which one bulk copy brings as it is.
//
// Each matrix (a group, or a branch): blocks in the order (slab of 64 deep, tap, 64 columns), a
// block 64 columns of 64 elements of depth, swizzled as in a stage (wgmma_pipeline.cuh). Columns
// are filled up to 64 with zeros. A stage of 128 or 256 columns is two or four neighbouring blocks:
// beyond the last columns it runs into blocks of the next tap, whose products nobody stores, and
// behind the last matrix into kSpareBlocks.
#pragma once

#include "cuda/device/gemm_args.cuh"
#include "cuda/device/wgmma_pipeline.cuh"

namespace perfconv::cuda {

constexpr int kPackSide = 64;                      // columns, and depth, of a block
constexpr int kPackBlock = kPackSide * kPackSide;  // elements
constexpr int kPackChunk = 8;                      // elements of 16 bytes
constexpr int kSpareBlocks = 256 / kPackSide - 1;  // of the widest stage, but for its first
constexpr int kPackSamples = 64;

// Blocks before those of a slab and tap, in a matrix of so many columns.
__host__ __device__ constexpr uint32_t packed_step(uint32_t columns, uint32_t taps, uint32_t slab,
                                                   uint32_t tap) {
  return (slab * taps + tap) * ((columns + kPackSide - 1) / kPackSide);
}

// Where an element of a matrix lies in its blocks.
__device__ __forceinline__ uint32_t packed_place(uint32_t columns, uint32_t taps, uint32_t column,
                                                 uint32_t tap, uint32_t depth) {
  const uint32_t block = packed_step(columns, taps, depth / kPackSide, tap) + column / kPackSide;
  return block * kPackBlock + swizzled(column % kPackSide, depth % kPackSide / kPackChunk) / 2 +
         depth % kPackChunk;
}

// Whether a pack holds the weight, by a warp: kPackSamples places are compared, so that a weight
// that was written behind autograd's back is read itself. All lanes get the answer.
__device__ __forceinline__ bool is_current_pack(const GemmArgs& args) {
  if (args.b_packed.blocks == nullptr) return false;
  const auto* weight = static_cast<const uint16_t*>(args.b);
  const auto* blocks = static_cast<const uint16_t*>(args.b_packed.blocks);
  const auto columns = static_cast<uint32_t>(args.columns);
  const auto taps = static_cast<uint32_t>(args.taps);
  const auto depth = static_cast<uint32_t>(args.depth);
  const uint32_t last = args.b_packed.matrices * columns * taps * depth - 1;
  bool is_same = true;
  for (uint32_t sample = threadIdx.x % kWarp; sample < kPackSamples; sample += kWarp) {
    const uint32_t flat = last / (kPackSamples - 1) * sample;
    const uint32_t column = flat / (taps * depth);
    const uint32_t place =
        packed_place(columns, taps, column % columns, flat / depth % taps, flat % depth);
    is_same &= weight[flat] == blocks[column / columns * args.b_packed.pitch + place];
  }
  return __all_sync(~0u, is_same);
}

}  // namespace perfconv::cuda
