// Implicit GEMM for any number of channels, groups and taps: elements are gathered one by one and
// multiplied as float32. For layers whose pixels are no whole 16-byte runs, such as RGB inputs, and
// for kernels of more than 32 taps.
//
//   M = active pixels, N = output channels of a group, K = taps x input channels of a group;
//   element k of a row is channel k % C of tap k / C, which is the order of the weight. grid:
//   persistent over tiles of kRows x kColumns, their number read on the device thread: 4
//   neighbouring rows x 8 neighbouring columns of sums shared memory: A (kDepth, kRows) and B
//   (kDepth, kColumns) as float32, transposed so that a thread reads its rows and columns in
//   16-byte pieces; receptive fields of the rows for each slab of kDepth: load A and B, barrier,
//   multiply, barrier
#include "cuda/device/fill.cuh"
#include "cuda/device/grid.cuh"
#include "cuda/device/receptive_field.cuh"
#include "cuda/kernels/launch.h"

namespace perfconv::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kRows = 128;
constexpr int kColumns = 32;
constexpr int kDepth = 32;
constexpr int kThreadRows = 4;
constexpr int kThreadColumns = 8;
constexpr int kRowPitch = kRows + 4;  // floats: writers of neighbouring depths meet other banks
constexpr int kColumnPitch = kColumns + 4;
constexpr int kBlocksPerMultiprocessor = 4;
static_assert(kThreads * kThreadRows * kThreadColumns == kRows * kColumns, "one tile, one block");
static_assert(kThreads % kDepth == 0, "a thread loads one depth of several rows");

struct Shared {
  float a[kDepth][kRowPitch];
  float b[kDepth][kColumnPitch];
  Receptive field[kRows];
  int32_t position[kRows];  // -1 past the end
};

struct Place {
  int64_t row;
  int64_t column;  // in its group
  int64_t group;
};

__device__ __forceinline__ void load_fields(const ForwardArgs& args, int64_t first, int count,
                                            Shared& shared) {
  const int64_t row = first + threadIdx.x;
  const int32_t position = row < count ? args.active.idx[row] : -1;
  shared.position[threadIdx.x] = position;
  if (position >= 0) shared.field[threadIdx.x] = receptive_field(args.geometry, position);
  static_assert(kThreads == kRows, "one thread a row");
}

// A slab of gathered inputs: a thread loads one depth, so that it divides by C once.
template <class T>
__device__ __forceinline__ void load_a(const ForwardArgs& args, const Place& place, int first,
                                       int depth, Shared& shared) {
  const ConvGeometry& g = args.geometry;
  const int channels = static_cast<int>(g.group_in_channels());
  const int own = static_cast<int>(threadIdx.x) % kDepth;
  const int k = first + own;
  const int tap = k / channels;
  const int64_t channel = place.group * channels + k % channels;
  const int64_t dy = tap / g.kernel_width * g.dilation_h;
  const int64_t dx = tap % g.kernel_width * g.dilation_w;
  for (int row = static_cast<int>(threadIdx.x) / kDepth; row < kRows; row += kThreads / kDepth) {
    float value = 0;
    if (k < depth && shared.position[row] >= 0) {
      const Receptive field = shared.field[row];
      const int64_t y = field.y + dy;
      const int64_t x = field.x + dx;
      if (y >= 0 && y < g.in_height && x >= 0 && x < g.in_width) {
        const int64_t pixel = (field.image * g.in_height + y) * g.in_width + x;
        value = to_sum(static_cast<const T*>(args.input)[pixel * g.in_channels + channel]);
      }
    }
    shared.a[own][row] = value;
  }
}

template <class T>
__device__ __forceinline__ void load_b(const ForwardArgs& args, const Place& place, int first,
                                       int depth, Shared& shared) {
  const int64_t columns = args.geometry.group_out_channels();
  const int own = static_cast<int>(threadIdx.x) % kDepth;
  const T* weight = static_cast<const T*>(args.weight) + first + own;
  for (int i = static_cast<int>(threadIdx.x) / kDepth; i < kColumns; i += kThreads / kDepth) {
    const int64_t column = place.column + i;
    const bool is_inside = column < columns && first + own < depth;
    shared.b[own][i] = is_inside ? to_sum(weight[(place.group * columns + column) * depth]) : 0.0f;
  }
}

__device__ __forceinline__ void multiply(const Shared& shared, int row, int column,
                                         float (&sums)[kThreadRows][kThreadColumns]) {
#pragma unroll 4
  for (int k = 0; k < kDepth; ++k) {
    const auto a = *reinterpret_cast<const float4*>(&shared.a[k][row]);
    const auto low = *reinterpret_cast<const float4*>(&shared.b[k][column]);
    const auto high = *reinterpret_cast<const float4*>(&shared.b[k][column + 4]);
    const float rows[] = {a.x, a.y, a.z, a.w};
    const float columns[] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
      for (int j = 0; j < kThreadColumns; ++j) sums[i][j] = fmaf(rows[i], columns[j], sums[i][j]);
    }
  }
}

template <class T>
__device__ __forceinline__ void store_tile(const ForwardArgs& args, const Place& place,
                                           const Shared& shared, int row, int column,
                                           bool is_vectorised,
                                           const float (&sums)[kThreadRows][kThreadColumns]) {
  const ConvGeometry& g = args.geometry;
  const int64_t first = place.group * g.group_out_channels();
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
    const int64_t position = shared.position[row + i];
    if (position < 0) continue;
#pragma unroll
    for (int j = 0; j < kThreadColumns; j += kRunSize<T>) {
      const int64_t channel = first + place.column + column + j;
      store_sums<T>(args.epilogue, &sums[i][j], is_vectorised, channel,
                    first + g.group_out_channels(), position * g.out_channels + channel,
                    args.output);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    forward_few_channels_kernel(const __grid_constant__ ForwardArgs args, bool is_vectorised) {
  __shared__ Shared shared;
  const ConvGeometry& g = args.geometry;
  fill_inactive<T>(args.mask, args.epilogue, g.out_channels, is_vectorised, args.output);
  const int count = *args.active.count;
  const auto depth = static_cast<int>(g.taps() * g.group_in_channels());
  const int64_t column_tiles = ceil_div(g.group_out_channels(), kColumns);
  const int64_t tiles = ceil_div(count, kRows) * column_tiles * g.groups;
  const int row = static_cast<int>(threadIdx.x) % (kRows / kThreadRows) * kThreadRows;
  const int column = static_cast<int>(threadIdx.x) / (kRows / kThreadRows) * kThreadColumns;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t columns = tile % (column_tiles * g.groups);
    const Place place{tile / (column_tiles * g.groups) * kRows, columns % column_tiles * kColumns,
                      columns / column_tiles};
    load_fields(args, place.row, count, shared);
    __syncthreads();  // fields readable
    float sums[kThreadRows][kThreadColumns] = {};
    for (int first = 0; first < depth; first += kDepth) {
      load_a<T>(args, place, first, depth, shared);
      load_b<T>(args, place, first, depth, shared);
      __syncthreads();  // slab readable
      multiply(shared, row, column, sums);
      __syncthreads();  // slab may be overwritten
    }
    store_tile<T>(args, place, shared, row, column, is_vectorised, sums);
    __syncthreads();  // positions may be overwritten
  }
}

template <class T>
cudaError_t launch(const LaunchContext& context, const ForwardArgs& args) {
  const ConvGeometry& g = args.geometry;
  const int64_t tiles =
      ceil_div(args.active.capacity, kRows) * ceil_div(g.group_out_channels(), kColumns) * g.groups;
  const unsigned blocks = grid_blocks(context, tiles, 1, kBlocksPerMultiprocessor);
  const bool is_vectorised = is_vector_image<T>(g.group_out_channels(), args.epilogue, args.output);
  forward_few_channels_kernel<T><<<blocks, kThreads, 0, context.stream>>>(args, is_vectorised);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_forward_few_channels(const LaunchContext& context, const ForwardArgs& args) {
  if (args.mask.pixels() * args.geometry.out_channels == 0) return cudaSuccess;
  return visit_single(
      args.storage, [&](auto tag) { return launch<typename decltype(tag)::Type>(context, args); });
}

}  // namespace perfconv::cuda
