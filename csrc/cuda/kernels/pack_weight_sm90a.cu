// A weight in the order of device/packed_weight.cuh, whose bulk copies only capability 9.0 has.
//
// One thread 16 bytes of the pack in a grid-stride loop: eight neighbours write 128 bytes in a row
// and read 128 bytes of one column.
#include "cuda/device/grid.cuh"
#include "cuda/device/packed_weight.cuh"
#include "cuda/kernels/launch_sm90a.h"

namespace perfconv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerMultiprocessor = 8;
constexpr int kRowChunks = kPackSide / kPackChunk;
constexpr int kBlockChunks = kPackBlock / kPackChunk;

__global__ void __launch_bounds__(kThreads)
    pack_weight_kernel(const __grid_constant__ PackArgs args, uint32_t chunks) {
  const auto* weight = static_cast<const uint4*>(args.weight);
  auto* packed = static_cast<uint4*>(args.packed);
  const auto columns = static_cast<uint32_t>(args.columns);
  const auto taps = static_cast<uint32_t>(args.taps);
  const auto slabs = static_cast<uint32_t>(args.depth) / kPackSide;
  const uint32_t step_blocks = (columns + kPackSide - 1) / kPackSide;
  const uint32_t threads = gridDim.x * kThreads;
  for (uint32_t i = blockIdx.x * kThreads + threadIdx.x; i < chunks; i += threads) {
    const uint32_t block = i / kBlockChunks;
    const uint32_t row = i / kRowChunks % kPackSide;
    const uint32_t step = block / step_blocks;  // of all matrices
    const uint32_t column = block % step_blocks * kPackSide + row;
    const uint32_t matrix = step / (taps * slabs);
    uint4 chunk{};
    if (column < columns && matrix < args.matrices) {
      const uint32_t slab = step / taps % slabs;
      const uint32_t source = (matrix * columns + column) * taps + step % taps;
      chunk = weight[(source * slabs + slab) * kRowChunks + (i % kRowChunks ^ row % 8)];
    }
    packed[i] = chunk;
  }
}

}  // namespace

int64_t packed_pitch(const PackArgs& args) {
  return ceil_div(args.columns, kPackSide) * kPackSide * args.taps * args.depth;
}

int64_t packed_elements(const PackArgs& args) {
  return args.matrices * packed_pitch(args) + kSpareBlocks * kPackBlock;
}

cudaError_t launch_pack_weight(const LaunchContext& context, const PackArgs& args) {
  const int64_t chunks = packed_elements(args) / kPackChunk;
  const unsigned blocks = grid_blocks(context, chunks, kThreads, kBlocksPerMultiprocessor);
  pack_weight_kernel<<<blocks, kThreads, 0, context.stream>>>(args, static_cast<uint32_t>(chunks));
  return cudaGetLastError();
}

}  // namespace perfconv::cuda
