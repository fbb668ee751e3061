// The weight gradient of sm_90a: the product, rows, slices and partial sums of wgrad_gemm.cuh, with
// one warpgroup that copies and two that multiply (wgmma).
//
//   grid: as wgrad_gemm.cuh; block: kOut x kIn sums of one tap, a warpgroup 64 output channels
//   shared memory: ring of kStages x (dY, X); two tables of kBatch pixels; barriers
//   A stage holds kStep pixels, as blocks of 64 channels: kStep rows of 128 bytes. The pixel is the
//   depth, so wgmma takes dY M-major and X N-major: both are copied as they lie.
#pragma once

#include "cuda/device/wgmma_pipeline.cuh"
#include "cuda/device/wgrad_choice.cuh"

namespace perfconv::cuda {

template <class Element_, int in, int stages>
struct WgmmaOuter {
  using Element = Element_;
  static constexpr bool kIsAMMajor = true;
  static constexpr bool kIsBNMajor = true;
  static constexpr int kOut = 128;
  static constexpr int kIn = in;
  static constexpr int kStages = stages;
  static constexpr int kThreads = 3 * kWarpgroup;
  static constexpr int kMultiplyingWarps = 2 * kWarpgroup / kWarp;
  static constexpr int kCopyingRegisters = 56;
  static constexpr int kMultiplyingRegisters = 224;
  static constexpr int kSums = in / 2;  // of a thread
  static constexpr int kStep = 64;      // pixels of a stage
  static constexpr int kBatch = 128;    // pixels of a table
  static constexpr int kBatchSteps = kBatch / kStep;
  static constexpr int kChunk = kChunkBytes / static_cast<int>(sizeof(Element));
  static constexpr int kBlockChannels = 64;
  static constexpr int kBlockBytes = kStep * 128;
  static constexpr int kABytes = kOut / kBlockChannels * kBlockBytes;
  static constexpr int kStageBytes = kABytes + in / kBlockChannels * kBlockBytes;

  static_assert(sizeof(Element) == 2, "wgmma transposes 16 bits only");
  static_assert(kBatch == kWarpgroup, "a thread fetches one pixel of a batch");
};

template <class Tile>
struct WgmmaOuterShared {
  alignas(1024) unsigned char ring[Tile::kStages * Tile::kStageBytes];
  PixelPair table[2][Tile::kBatch];
  uint64_t full[Tile::kStages];
  uint64_t empty[Tile::kStages];
};

// A copying thread's share of a stage: one chunk of every 16th pixel of each block.
template <class Tile>
class BlockLoader {
 public:
  using T = typename Tile::Element;

  __device__ BlockLoader(const WgradArgs& args, const WeightTile& tile) : images_(args, tile) {}

  // pixels: those of the step.
  __device__ void load(uint32_t stage, const PixelPair* pixels) const {
#pragma unroll
    for (int i = 0; i < Tile::kStep / kRowStep; ++i) {
      const PixelPair pair = pixels[row() + i * kRowStep];
      const uint32_t place = stage + swizzled(row(), chunk()) + i * kRowStep * 128;
      copy_row<Tile::kOut>(place, images_.y + pair.output * images_.y_pitch, images_.y,
                           pair.output >= 0, images_.y_left);
      copy_row<Tile::kIn>(place + Tile::kABytes, images_.x + pair.input * images_.x_pitch,
                          images_.x, pair.output >= 0, images_.x_left);
    }
  }

 private:
  static constexpr int kRowStep = kWarpgroup / 8;
  static_assert(kRowStep % 8 == 0, "the chunks of a thread are swizzled alike");

  __device__ static uint32_t row() { return threadIdx.x / 8; }
  __device__ static uint32_t chunk() { return threadIdx.x % 8; }

  // One chunk of each block of a pixel's channels; `image` where there is none.
  template <int channels>
  __device__ static void copy_row(uint32_t place, const T* pixel, const T* image, bool is_pixel,
                                  int left) {
#pragma unroll
    for (int block = 0; block < channels / Tile::kBlockChannels; ++block) {
      const int channel = block * Tile::kBlockChannels + static_cast<int>(chunk()) * Tile::kChunk;
      const bool is_valid = is_pixel && channel < left;
      ptx::copy_16_async(place + block * Tile::kBlockBytes, is_valid ? pixel + channel : image,
                         is_valid);
    }
  }

  WgradImages<T> images_;
};

template <class Tile, class Rows>
__device__ __forceinline__ void copy_pixels(const WgradArgs& args, const Rows& rows,
                                            const WeightTile& tile, const RowRange& range,
                                            int steps, WgmmaOuterShared<Tile>& shared) {
  const BlockLoader<Tile> loader(args, tile);
  const uint32_t ring = ptx::shared_address(shared.ring);
  const uint32_t full = ptx::shared_address(shared.full);
  const uint32_t empty = ptx::shared_address(shared.empty);
  const int kh = tile.tap / args.kernel_width;
  const int kw = tile.tap % args.kernel_width;
  RingPlace<Tile::kStages> stage;
  for (int step = 0; step < steps; ++step) {
    PixelPair* table = shared.table[step / Tile::kBatchSteps % 2];
    if (step % Tile::kBatchSteps == 0) {
      const int row = range.begin + step * Tile::kStep + static_cast<int>(threadIdx.x);
      table[threadIdx.x] = row < range.end ? rows.pixels(row, static_cast<int>(blockIdx.z), kh, kw)
                                           : PixelPair{-1, -1};
      ptx::sync_threads<1, kWarpgroup>();  // table readable; the other one may be written
    }
    ptx::wait_for_phase(empty + stage.place * 8, stage.parity ^ 1);
    loader.load(ring + stage.place * Tile::kStageBytes,
                table + step % Tile::kBatchSteps * Tile::kStep);
    ptx::arrive_after_copies(full + stage.place * 8);
    stage.advance();
  }
}

// The sums of a thread to the slice's partial sums.
template <class Tile>
__device__ __forceinline__ void store_partials(const WgradArgs& args, const WeightTile& tile,
                                               const float (&sums)[Tile::kSums]) {
  const auto slice = static_cast<int64_t>(blockIdx.z) * args.slices + blockIdx.y;
  float* partials = args.partials + slice * args.weight_elements();
  const auto warp = static_cast<int>(threadIdx.x - kWarpgroup) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int first = warp * 16 + lane / 4;
#pragma unroll
  for (int e = 0; e < Tile::kSums; e += 2) {
    const int out = tile.output + first + e / 2 % 2 * 8;
    const int in = tile.input + e / 4 * 8 + lane % 4 * 2;
    if (out >= args.outputs || in >= args.inputs) continue;
    const int64_t output = int64_t{tile.group} * args.outputs + out;
    float* place = partials + (output * args.taps() + tile.tap) * args.inputs + in;
    *reinterpret_cast<float2*>(place) = make_float2(sums[e], sums[e + 1]);
  }
}

template <class Tile, class Rows>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    wgmma_wgrad_kernel(const __grid_constant__ WgradArgs args, const __grid_constant__ Rows rows) {
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& shared = *reinterpret_cast<WgmmaOuterShared<Tile>*>(memory);
  if (threadIdx.x == 0) {
    if (ptx::shared_address(memory) % 1024 != 0) __trap();  // the swizzle would be another
    for (int stage = 0; stage < Tile::kStages; ++stage) {
      ptx::start_barrier(ptx::shared_address(&shared.full[stage]), kWarpgroup);
      ptx::start_barrier(ptx::shared_address(&shared.empty[stage]), Tile::kMultiplyingWarps);
    }
  }
  __syncthreads();  // barriers readable
  const WeightTile tile = weight_tile<Tile>(args, blockIdx.x);
  const RowRange range = slice_of<Tile>(rows.range(static_cast<int>(blockIdx.z)),
                                        static_cast<int>(blockIdx.y), args.slices);
  const int steps = static_cast<int>(ceil_div(range.end - range.begin, Tile::kStep));
  if (threadIdx.x < kWarpgroup) {
    ptx::give_registers<Tile::kCopyingRegisters>();
    copy_pixels<Tile>(args, rows, tile, range, steps, shared);
  } else {
    ptx::take_registers<Tile::kMultiplyingRegisters>();
    const uint32_t warpgroup = threadIdx.x / kWarpgroup - 1;
    RingPlace<Tile::kStages> stage;
    float sums[Tile::kSums] = {};
    multiply_stages<Tile>(steps, warpgroup * Tile::kBlockBytes, shared, stage, sums);
    store_partials<Tile>(args, tile, sums);
  }
}

// Six stages of 32 KiB; up to 64 input channels eight of 24.
template <class T, class Function>
auto visit_wgmma_inputs(const WgradArgs& args, Function function) {
  return args.inputs <= 64 ? function(OuterTag<WgmmaOuter<T, 64, 8>>())
                           : function(OuterTag<WgmmaOuter<T, 128, 6>>());
}

// Calls function(OuterTag<Tile>()) with the tile of a weight.
template <class Function>
auto visit_wgmma_outer(const WgradArgs& args, StorageType storage, Function function) {
  return storage == StorageType::kBFloat16  // the planner refuses all but 16 bits
             ? visit_wgmma_inputs<__nv_bfloat16>(args, function)
             : visit_wgmma_inputs<__half>(args, function);
}

// Fills args.partials, as launch_wgrad_gemm.
template <class Tile, class Rows>
cudaError_t launch_wgmma_wgrad(const LaunchContext& context, const WgradArgs& args,
                               const Rows& rows) {
  const auto kernel = wgmma_wgrad_kernel<Tile, Rows>;
  constexpr int kBytes = sizeof(WgmmaOuterShared<Tile>);
  const cudaError_t status =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (status != cudaSuccess) return status;
  const dim3 grid(static_cast<unsigned>(wgrad_tiles<Tile>(args)),
                  static_cast<unsigned>(args.slices), static_cast<unsigned>(args.segments));
  kernel<<<grid, Tile::kThreads, kBytes, context.stream>>>(args, rows);
  return cudaGetLastError();
}

}  // namespace perfconv::cuda
