// The weight gradient as a GEMM over gathered pixels:
//   dW[n, t, c] = sum over rows r of dY[output(r), n] * X[input(r, t), c]
// The summed index is the row, so both factors are read as they lie, a row of channels a pixel.
//
//   grid: (tiles of (group, tap, output channels, input channels), slices of the rows, segments)
//   block: kOut x kIn sums of one tap; warp: a rectangle of them
//   shared memory: table of 2 x kBatch (output, input) pixels; ring of kStages x (dY (kStep, kOut),
//   X (kStep, kIn)), rows padded so that neither copies nor loads meet in a bank
//   for each step of kStep rows:
//     wait for its copies, barrier, start those kStages - 1 steps ahead; when those end a batch,
//     fetch the next batch's pixels; multiply; write the fetched pixels to the table
//   sums -> partials[segment][slice][n][t][c], which reduce_kernel adds slice by slice
//
// How rows are cut into slices depends on their number alone: every sum has one order. A Rows
// policy is a plain struct with
//   RowRange range(int segment) const               read on the device
//   PixelPair pixels(int r, int segment, int kh, int kw) const   output -1: the product is 0
// KERNELS.md K-020 has bytes, registers and occupancy.
#pragma once

#include "cuda/device/gemm_tile.cuh"
#include "cuda/device/grid.cuh"
#include "cuda/device/ptx.cuh"
#include "cuda/kernels/launch.h"

namespace perfconv::cuda {

struct RowRange {
  int begin;
  int end;
};

struct PixelPair {
  int32_t output;  // -1: neither is read
  int32_t input;
};

struct WgradArgs {
  const void* grad_output = nullptr;  // (pixels, groups * outputs)
  const void* input = nullptr;        // (pixels, groups * inputs)
  float* partials = nullptr;          // (segments, slices, groups * outputs, taps, inputs)
  int outputs = 0;                    // channels of a group
  int inputs = 0;
  int groups = 1;
  int kernel_height = 1;
  int kernel_width = 1;
  int slices = 1;
  int segments = 1;

  constexpr int taps() const { return kernel_height * kernel_width; }
  constexpr int64_t weight_elements() const { return int64_t{outputs} * groups * taps() * inputs; }
};

template <class Element_, Multiply multiply, int out, int in, int warps_out, int warps_in,
          int stages>
struct WgradTile {
  using Element = Element_;
  static constexpr Multiply kMultiply = multiply;
  static constexpr int kOut = out;
  static constexpr int kIn = in;
  static constexpr int kWarpsIn = warps_in;
  static constexpr int kStages = stages;
  static constexpr int kThreads = warps_out * warps_in * kWarp;
  static constexpr int kWarpOut = out / warps_out;
  static constexpr int kWarpIn = in / warps_in;
  static constexpr int kBytes = static_cast<int>(sizeof(Element));
  static constexpr int kChunk = kChunkBytes / kBytes;  // elements
  static constexpr int kStep = 64 / kBytes;            // rows of a stage: two or four mma deep
  static constexpr int kBatch = 128;                   // rows of a table

  // ldmatrix reads 16 bytes of eight rows: rows are shifted by 16 bytes. The loads of 32-bit
  // elements read 32 bytes of four rows: rows are shifted by 32.
  static constexpr int kPad = kBytes == 2 ? 16 : 32;
  static constexpr int kOutPitch = out * kBytes + kPad;  // bytes
  static constexpr int kInPitch = in * kBytes + kPad;
  static constexpr int kOutBytes = kStep * kOutPitch;
  static constexpr int kStageBytes = kStep * (kOutPitch + kInPitch);
  static constexpr int kSharedBytes = kStages * kStageBytes;

  static_assert(kWarpOut % 16 == 0 && kWarpIn % 16 == 0, "a warp loads 16 x 16 at a time");
  static_assert(kBatch % kStep == 0, "a step takes its rows from one table");
  static_assert(kBatch <= kThreads, "a thread fetches at most one pixel of a batch");
  static_assert(stages >= 2, "one stage is read while another arrives");
};

// mma.sync, 16x8 sums: rows are output channels, the depth is the gathered row, so both factors are
// transposed on their way from shared memory.
template <class Tile>
class TensorCoreOuter {
 public:
  using T = typename Tile::Element;

  __device__ void multiply(const unsigned char* stage, int first_out, int first_in) {
    const uint32_t y = ptx::shared_address(stage);
    const uint32_t x = y + Tile::kOutBytes;
#pragma unroll
    for (int row = 0; row < Tile::kStep; row += kDepth) {
      uint32_t a[kOutBlocks][4];
      uint32_t b[kInPairs][4];
#pragma unroll
      for (int i = 0; i < kOutBlocks; ++i) load_a(a[i], y, row, first_out + 16 * i);
#pragma unroll
      for (int j = 0; j < kInPairs; ++j) load_b(b[j], x, row, first_in + 16 * j);
#pragma unroll
      for (int i = 0; i < kOutBlocks; ++i) {
#pragma unroll
        for (int j = 0; j < 2 * kInPairs; ++j) {
          const uint32_t block[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
          ptx::multiply_add<T>(sums_[i][j], a[i], block);
        }
      }
    }
  }

  // Calls function(output channel, input channel, sums) for runs of kRun input channels.
  static constexpr int kRun = 2;
  template <class Function>
  __device__ void for_each_run(int first_out, int first_in, Function function) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
    for (int i = 0; i < kOutBlocks; ++i) {
#pragma unroll
      for (int j = 0; j < 2 * kInPairs; ++j) {
        const int row = first_out + 16 * i + lane / 4;
        const int column = first_in + 8 * j + lane % 4 * 2;
        function(row, column, &sums_[i][j][0]);
        function(row + 8, column, &sums_[i][j][2]);
      }
    }
  }

 private:
  static constexpr int kOutBlocks = Tile::kWarpOut / 16;
  static constexpr int kInPairs = Tile::kWarpIn / 16;
  static constexpr int kDepth = 32 / Tile::kBytes;  // rows of one mma

  // a[0..3]: channels 0-7 and 8-15 at the first half of the rows, then at the second.
  __device__ static void load_a(uint32_t (&a)[4], uint32_t tile, int row, int channel) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    if constexpr (Tile::kBytes == 2) {
      const int matrix = lane / 8;
      ptx::load_matrices_transposed(a, tile + (row + matrix / 2 * 8 + lane % 8) * Tile::kOutPitch +
                                           (channel + matrix % 2 * 8) * Tile::kBytes);
    } else {  // no transposing load of 32-bit elements
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        a[i] = load_element(tile, row + i / 2 * 4 + lane % 4, channel + i % 2 * 8 + lane / 4,
                            Tile::kOutPitch);
      }
    }
  }

  // b[0], b[1]: both halves of the rows for channels 0-7; b[2], b[3]: for channels 8-15.
  __device__ static void load_b(uint32_t (&b)[4], uint32_t tile, int row, int channel) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    if constexpr (Tile::kBytes == 2) {
      const int matrix = lane / 8;
      ptx::load_matrices_transposed(b, tile + (row + matrix % 2 * 8 + lane % 8) * Tile::kInPitch +
                                           (channel + matrix / 2 * 8) * Tile::kBytes);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        b[i] = load_element(tile, row + i % 2 * 4 + lane % 4, channel + i / 2 * 8 + lane / 4,
                            Tile::kInPitch);
      }
    }
  }

  __device__ static uint32_t load_element(uint32_t tile, int row, int channel, int pitch) {
    return ptx::round_to_tf32(ptx::load_shared(tile + row * pitch + channel * Tile::kBytes));
  }

  float sums_[kOutBlocks][2 * kInPairs][4] = {};
};

// FFMA: lane l owns output channels 4(l/8) + 16i to + 3 and input channels 4(l%8) + 32j to + 3.
template <class Tile>
class FloatOuter {
 public:
  __device__ void multiply(const unsigned char* stage, int first_out, int first_in) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const unsigned char* y = stage + (first_out + lane / 8 * 4) * Tile::kBytes;
    const unsigned char* x = stage + Tile::kOutBytes + (first_in + lane % 8 * 4) * Tile::kBytes;
#pragma unroll 4
    for (int row = 0; row < Tile::kStep; ++row) {
      float4 a[kOutRuns];
      float4 b[kInRuns];
#pragma unroll
      for (int i = 0; i < kOutRuns; ++i) {
        a[i] = *reinterpret_cast<const float4*>(y + row * Tile::kOutPitch + 16 * i * Tile::kBytes);
      }
#pragma unroll
      for (int j = 0; j < kInRuns; ++j) {
        b[j] = *reinterpret_cast<const float4*>(x + row * Tile::kInPitch + 32 * j * Tile::kBytes);
      }
#pragma unroll
      for (int i = 0; i < kOutRuns; ++i) {
#pragma unroll
        for (int j = 0; j < kInRuns; ++j) {
          add(sums_[4 * i][j], a[i].x, b[j]);
          add(sums_[4 * i + 1][j], a[i].y, b[j]);
          add(sums_[4 * i + 2][j], a[i].z, b[j]);
          add(sums_[4 * i + 3][j], a[i].w, b[j]);
        }
      }
    }
  }

  static constexpr int kRun = 4;
  template <class Function>
  __device__ void for_each_run(int first_out, int first_in, Function function) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
    for (int i = 0; i < 4 * kOutRuns; ++i) {
#pragma unroll
      for (int j = 0; j < kInRuns; ++j) {
        function(first_out + lane / 8 * 4 + i / 4 * 16 + i % 4, first_in + lane % 8 * 4 + 32 * j,
                 sums_[i][j]);
      }
    }
  }

 private:
  static constexpr int kOutRuns = Tile::kWarpOut / 16;
  static constexpr int kInRuns = Tile::kWarpIn / 32;
  static_assert(Tile::kWarpIn % 32 == 0, "eight lanes take runs of four channels");

  __device__ static void add(float (&sums)[4], float a, const float4& b) {
    sums[0] = fmaf(a, b.x, sums[0]);
    sums[1] = fmaf(a, b.y, sums[1]);
    sums[2] = fmaf(a, b.z, sums[2]);
    sums[3] = fmaf(a, b.w, sums[3]);
  }

  float sums_[4 * kOutRuns][kInRuns][4] = {};
};

template <class Tile>
using OuterSums = std::conditional_t<Tile::kMultiply == Multiply::kTensorCores,
                                     TensorCoreOuter<Tile>, FloatOuter<Tile>>;

// One block's tile of the weight.
struct WeightTile {
  int group;
  int tap;
  int output;  // first channel, in its group
  int input;
};

template <class Tile>
__device__ __forceinline__ WeightTile weight_tile(const WgradArgs& args, unsigned number) {
  const unsigned in_tiles = static_cast<unsigned>(ceil_div(args.inputs, Tile::kIn));
  const unsigned out_tiles = static_cast<unsigned>(ceil_div(args.outputs, Tile::kOut));
  const unsigned rest = number / in_tiles;
  const unsigned outer = rest / out_tiles;
  const auto taps = static_cast<unsigned>(args.taps());
  return {static_cast<int>(outer / taps), static_cast<int>(outer % taps),
          static_cast<int>(rest % out_tiles) * Tile::kOut,
          static_cast<int>(number % in_tiles) * Tile::kIn};
}

// The rows of one slice: whole steps, so that only the last one of a segment is ragged.
template <class Tile>
__device__ __forceinline__ RowRange slice_of(const RowRange& rows, int slice, int slices) {
  const int64_t steps = ceil_div(rows.end - rows.begin, Tile::kStep);
  const int64_t length = ceil_div(steps, slices) * Tile::kStep;
  const int64_t begin = rows.begin + slice * length;
  return {static_cast<int>(min(begin, int64_t{rows.end})),
          static_cast<int>(min(begin + length, int64_t{rows.end}))};
}

// The two images of a tile's product, from its first channels on.
template <class T>
struct WgradImages {
  __device__ WgradImages(const WgradArgs& args, const WeightTile& tile)
      : y(static_cast<const T*>(args.grad_output) + tile.group * args.outputs + tile.output),
        x(static_cast<const T*>(args.input) + tile.group * args.inputs + tile.input),
        y_pitch(args.outputs * args.groups),
        x_pitch(args.inputs * args.groups),
        y_left(args.outputs - tile.output),
        x_left(args.inputs - tile.input) {}

  const T* y;
  const T* x;
  int64_t y_pitch;
  int64_t x_pitch;
  int y_left;  // channels from the tile's first on
  int x_left;
};

// A thread's share of the copies of every stage.
template <class Tile>
class RowLoader {
 public:
  using T = typename Tile::Element;

  __device__ RowLoader(const WgradArgs& args, const WeightTile& tile) : images_(args, tile) {}

  // pixels: those of the step.
  __device__ void load(uint32_t stage, const PixelPair* pixels) const {
    copy_rows<Tile::kOut, Tile::kOutPitch>(
        stage, images_.y, images_.y_left, [&](int row) { return pixels[row].output; },
        images_.y_pitch);
    copy_rows<Tile::kIn, Tile::kInPitch>(
        stage + Tile::kOutBytes, images_.x, images_.x_left,
        [&](int row) { return pixels[row].output < 0 ? -1 : pixels[row].input; }, images_.x_pitch);
  }

 private:
  template <int channels, int shared_pitch, class PixelOf>
  __device__ static void copy_rows(uint32_t tile, const T* image, int left, PixelOf pixel_of,
                                   int64_t pitch) {
    constexpr int kChunks = channels / Tile::kChunk;  // of a row
    constexpr int kRowStep = Tile::kThreads / kChunks;
    static_assert(Tile::kThreads % kChunks == 0, "a thread copies one column of chunks");
    static_assert(Tile::kStep % kRowStep == 0, "every thread copies the same share");
    const int chunk = static_cast<int>(threadIdx.x) % kChunks;
#pragma unroll
    for (int i = 0; i < Tile::kStep / kRowStep; ++i) {
      const int row = static_cast<int>(threadIdx.x) / kChunks + i * kRowStep;
      const int32_t pixel = pixel_of(row);
      const bool is_valid = pixel >= 0 && chunk * Tile::kChunk < left;
      const T* source = is_valid ? image + pixel * pitch + chunk * Tile::kChunk : image;
      ptx::copy_16_async(tile + row * shared_pitch + chunk * kChunkBytes, source, is_valid);
    }
  }

  WgradImages<T> images_;
};

template <class Tile, class Rows>
__global__ void __launch_bounds__(Tile::kThreads)
    wgrad_gemm_kernel(const __grid_constant__ WgradArgs args, const __grid_constant__ Rows rows) {
  constexpr int kBatchSteps = Tile::kBatch / Tile::kStep;
  extern __shared__ __align__(128) unsigned char ring[];
  __shared__ PixelPair table[2][Tile::kBatch];
  const int thread = static_cast<int>(threadIdx.x);
  const WeightTile tile = weight_tile<Tile>(args, blockIdx.x);
  const auto slice = static_cast<int>(blockIdx.y);
  const auto segment = static_cast<int>(blockIdx.z);
  const RowRange range = slice_of<Tile>(rows.range(segment), slice, args.slices);
  const int steps = static_cast<int>(ceil_div(range.end - range.begin, Tile::kStep));
  const int kh = tile.tap / args.kernel_width;
  const int kw = tile.tap % args.kernel_width;

  // The pixels of row `thread` of a batch; nothing past the slice.
  const auto fetch = [&](int batch) {
    const int row = range.begin + batch * Tile::kBatch + thread;
    const bool is_row = thread < Tile::kBatch && row < range.end;
    return is_row ? rows.pixels(row, segment, kh, kw) : PixelPair{-1, -1};
  };
  const auto write_table = [&](int batch, const PixelPair& pixels) {
    if (thread < Tile::kBatch) table[batch % 2][thread] = pixels;
  };

  write_table(0, fetch(0));
  __syncthreads();  // first table readable
  const RowLoader<Tile> loader(args, tile);
  const uint32_t ring_address = ptx::shared_address(ring);
  int loaded = 0;
  int load_stage = 0;
  // Starts the copies of the next step; returns the batch whose table is needed next, or -1.
  const auto load_next = [&] {
    if (loaded < steps) {
      const PixelPair* pixels =
          table[loaded / kBatchSteps % 2] + loaded % kBatchSteps * Tile::kStep;
      loader.load(ring_address + load_stage * Tile::kStageBytes, pixels);
    }
    ptx::commit_copies();  // also an empty group, so that counts of groups are counts of steps
    ++loaded;
    if (++load_stage == Tile::kStages) load_stage = 0;
    return loaded < steps && loaded % kBatchSteps == 0 ? loaded / kBatchSteps : -1;
  };
  static_assert(Tile::kStages - 1 <= kBatchSteps, "the first steps need the first table only");
  int next_batch = -1;
#pragma unroll
  for (int i = 0; i < Tile::kStages - 1; ++i) next_batch = load_next();
  if (next_batch >= 0) write_table(next_batch, fetch(next_batch));

  const int warp = thread / kWarp;
  const int first_out = warp / Tile::kWarpsIn * Tile::kWarpOut;
  const int first_in = warp % Tile::kWarpsIn * Tile::kWarpIn;
  OuterSums<Tile> sums;
  int stage = 0;
  for (int step = 0; step < steps; ++step) {
    ptx::wait_copies<Tile::kStages - 2>();
    __syncthreads();  // stage and table readable; the stage multiplied before may be overwritten
    next_batch = load_next();
    PixelPair fetched{-1, -1};
    if (next_batch >= 0) fetched = fetch(next_batch);
    sums.multiply(ring + stage * Tile::kStageBytes, first_out, first_in);
    if (next_batch >= 0) write_table(next_batch, fetched);
    if (++stage == Tile::kStages) stage = 0;
  }
  ptx::wait_copies<0>();

  float* partials =
      args.partials + (int64_t{segment} * args.slices + slice) * args.weight_elements();
  sums.for_each_run(first_out, first_in, [&](int out, int in, const float* run) {
    if (tile.output + out >= args.outputs || tile.input + in >= args.inputs) return;
    const int64_t output = int64_t{tile.group} * args.outputs + tile.output + out;
    float* place = partials + (output * args.taps() + tile.tap) * args.inputs + tile.input + in;
#pragma unroll
    for (int i = 0; i < OuterSums<Tile>::kRun; i += 2) {
      *reinterpret_cast<float2*>(place + i) = make_float2(run[i], run[i + 1]);
    }
  });
}

// result[segment][n][c][t] = sum over slices, in order, of partials[segment][slice][n][t][c].
// Weights have fewer than 2^31 elements. Static for the reason of finish_kernel
// (implicit_gemm.cuh).
constexpr int kReduceThreads = 256;
template <class T>
static __global__ void __launch_bounds__(kReduceThreads)
    wgrad_reduce_kernel(const __grid_constant__ WgradArgs args, T* __restrict__ result) {
  const int64_t elements = args.weight_elements();
  const float* partials = args.partials + blockIdx.y * args.slices * elements;
  const auto inputs = static_cast<uint32_t>(args.inputs);
  const auto taps = static_cast<uint32_t>(args.taps());
  const uint32_t patch = inputs * taps;
  const uint32_t threads = gridDim.x * blockDim.x;
  for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < elements; i += threads) {
    float sum = 0;
    for (int slice = 0; slice < args.slices; ++slice) sum += partials[slice * elements + i];
    const uint32_t output = i / patch;
    const uint32_t place = i - output * patch;
    const uint32_t tap = place / inputs;
    const uint32_t input = place - tap * inputs;
    result[blockIdx.y * elements + output * patch + input * taps + tap] = from_sum<T>(sum);
  }
}

}  // namespace perfconv::cuda
