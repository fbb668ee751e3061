// The tiles of the warp-specialised implicit GEMM (wgmma_gemm.cuh).
#pragma once

#include "cuda/device/wgmma_pipeline.cuh"

namespace perfconv::cuda {

// A block's tile of 128 x kColumns sums, each of two warpgroups 64 rows of it; a third one copies.
// A slab is 64 deep: rows of 128 bytes, the widest swizzle. blocks: of a multiprocessor.
template <class Element_, BLayout b_layout, int columns, int stages, int blocks,
          int copying_registers, int multiplying_registers>
struct WgmmaTile {
  using Element = Element_;
  static constexpr BLayout kBLayout = b_layout;
  // packed_weight.cuh
  static constexpr bool kTakesPack = b_layout == BLayout::kDepthContiguous && sizeof(Element) == 2;
  // wgmma_cluster.cuh: the widest tiles are for many tiles only
  static constexpr bool kTakesCluster = sizeof(Element) == 2 && columns <= 128;
  static constexpr bool kIsAMMajor = false;
  static constexpr bool kIsBNMajor = b_layout == BLayout::kColumnContiguous;
  static constexpr int kRows = 128;
  static constexpr int kColumns = columns;
  static constexpr int kStages = stages;
  static constexpr int kBlocks = blocks;
  static constexpr int kThreads = 3 * kWarpgroup;
  static constexpr int kMultiplyingWarps = 2 * kWarpgroup / kWarp;
  static constexpr int kCopyingRegisters = copying_registers;
  static constexpr int kMultiplyingRegisters = multiplying_registers;
  static constexpr int kSums = columns / 2;  // of a thread

  static constexpr int kRowBytes = 128;
  static constexpr int kRowChunks = kRowBytes / kChunkBytes;
  static constexpr int kChunk = kChunkBytes / static_cast<int>(sizeof(Element));  // elements
  static constexpr int kDepth = kRowBytes / static_cast<int>(sizeof(Element));    // of a slab
  static constexpr int kABytes = kRows * kRowBytes;
  // Column-contiguous B: blocks of 64 columns, kDepth rows of 128 bytes each.
  static constexpr int kBlockColumns = kRowBytes / static_cast<int>(sizeof(Element));
  static constexpr int kBlockBytes = kDepth * kRowBytes;
  static constexpr int kBBytes = columns * kRowBytes;
  static constexpr int kStageBytes = kABytes + kBBytes;

  // A warp stages 16 rows of sums, so many columns at a time, rows shifted by 8 banks.
  static constexpr int kStagedColumns = 32;
  static constexpr int kStagingPitch = kStagedColumns + 8;

  static_assert(sizeof(Element) == 2 || !kIsBNMajor, "wgmma transposes 16 bits only");
  static_assert(columns % kBlockColumns == 0 && (columns & (columns - 1)) == 0,
                "finish_kernel divides by shifts");
  static_assert(kStageBytes % 1024 == 0, "the swizzle repeats after 1024 bytes");
  static constexpr int kLaunchRegisters = 65536 / (blocks * kThreads) / 8 * 8;
  static_assert(copying_registers + 2 * multiplying_registers <= 3 * kLaunchRegisters,
                "warpgroups take what others gave");
  static_assert(stages >= 2, "one slab is read while another arrives");
};

}  // namespace perfconv::cuda
