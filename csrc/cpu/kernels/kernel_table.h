// The functions one instruction set provides, as a table chosen once per process (table.cpp).
// Torch-free. Element types: float, double, BFloat16, Half; sums are kept in float, or in double
// for double.
#pragma once

#include <cstdint>

#include "core/element.h"
#include "core/geometry.h"

namespace perfconv::cpu {

// Largest tile of any instruction set, for stack buffers.
inline constexpr int64_t kMaxTileRows = 14;
inline constexpr int64_t kMaxTileCols = 32;

inline constexpr int64_t kCacheLine = 64;

// Memory that the next tile will read, fetched while this one is computed: one cache line a depth
// step, since a burst would stall (KERNELS.md K-015). [begin, end), then `bytes` bytes, not 0, from
// each of rows[0 .. count).
struct NextLines {
  const char* begin = nullptr;
  const char* end = nullptr;
  const void* const* rows = nullptr;
  int64_t count = 0;
  int64_t bytes = 0;
};

// How far GemmKernel::outer looks ahead.
inline constexpr int64_t kStepsAhead = 16;

// A register tile of tile_rows x tile_cols sums. A panel holds tile_cols columns of the right
// operand, [depth][tile_cols], or [depth / 2][tile_cols][2] when depth_step is 2 (dot-product
// instructions take two neighbouring depths at once); unused columns are zero.
template <class A, class Acc>
struct GemmKernel {
  int64_t tile_rows = 0;
  int64_t tile_cols = 0;
  int64_t depth_step = 1;

  // tile[m][n] = sum over taps t and depths k of
  //   rows[t * tile_rows + m][k] * panel[t * depth + k][n] for m < count. depth must be a multiple
  //   of depth_step.
  void (*multiply)(const A* const* rows, int64_t count, int64_t taps, int64_t depth, const A* panel,
                   NextLines next, Acc* tile) = nullptr;

  // out[m][out_first + n] += sum over k < depth of rows[m][first + k] * panel[k][n], n < tile_cols,
  // for m < count. The sums of the next_count rows after these are fetched meanwhile: out goes on.
  void (*accumulate)(const A* const* rows, int64_t first, int64_t count, int64_t depth,
                     const A* panel, Acc* const* out, int64_t out_first,
                     int64_t next_count) = nullptr;

  // out[m * out_pitch + n] += sum over k < steps of left[k * left_pitch + m] * right[k][first + n],
  // n < tile_cols, for m < count; is_first: = instead of +=. With a depth_step of 2 a step is two
  // depths: left holds [m][2], a right row [n][2]. first and the pitches count elements. The
  // next_count rows of out after these are fetched meanwhile, and the rows of right kStepsAhead
  // steps before their use: right goes on that far.
  void (*outer)(const A* left, int64_t left_pitch, const A* const* right, int64_t first,
                int64_t steps, int64_t count, bool is_first, Acc* out, int64_t out_pitch,
                int64_t next_count) = nullptr;
};

// The output channels of a convolution with few channels a group, cut into vectors of `lanes`,
// whose groups read at most as many neighbouring input channels: a vector of them is loaded, and
// put in the order of the outputs once for each input channel of a group.
template <class Acc>
struct LaneBlocks {
  int64_t count = 0;
  int64_t steps = 1;                   // input channels of a group
  const int32_t* out_first = nullptr;  // [block]; the last two may overlap
  const int32_t* in_first = nullptr;   // [block]
  const int32_t* order = nullptr;      // [block][step][lanes]; null: depthwise, as they lie
  const Acc* weight = nullptr;         // [block][tap][step][lanes]
  int64_t block_weights = 0;           // elements of one block
};

struct LaneTap {
  int64_t offset;  // of the input, in elements
  int64_t weight;  // in a block's weights, in elements
};

// Pixels with the same taps, and what becomes of their sums.
template <class T, class Acc>
struct LanePixels {
  const LaneTap* taps = nullptr;
  int64_t tap_count = 0;
  const T* in = nullptr;
  const int64_t* reads = nullptr;  // of each pixel: its taps are at in + reads[m] + offset
  int64_t count = 0;
  const Acc* bias = nullptr;  // never null
  const T* residual = nullptr;
  Activation activation = Activation::kNone;
  T* out = nullptr;
  const int64_t* writes = nullptr;  // of each pixel: it is at out + writes[m], and its residual
};

// Neighbouring pixels of a row, with the same taps.
template <class T, class Acc>
struct LaneRow {
  const LaneTap* taps = nullptr;
  int64_t tap_count = 0;
  const T* in = nullptr;  // the taps of pixel m are at in + m * in_step + offset
  int64_t in_step = 0;
  int64_t count = 0;
  const Acc* bias = nullptr;  // null: none
  T* out = nullptr;           // pixel m is at out + m * out_step
  int64_t out_step = 0;
  const int32_t* keep = nullptr;  // of each pixel: all bits, or none and zero is stored; null: all
};

// Pixels with the same taps, whose values are multiplied with their gradients.
template <class T>
struct LaneProducts {
  const int64_t* taps = nullptr;  // offsets of the input
  int64_t tap_count = 0;
  const T* in = nullptr;
  const int64_t* reads = nullptr;  // of each pixel: its taps are at in + reads[m] + offset
  const T* grad = nullptr;
  const int64_t* grads = nullptr;  // of each pixel: its gradient is at grad + grads[m]
  int64_t count = 0;
};

// Work along the channels of one pixel. T is the storage type, Acc the type of the sums.
template <class T, class Acc>
struct RowKernel {
  // For m < count: out[m][c] = activation(sums[m * sums_stride + c] + bias[c] + residual[m][c]);
  // bias and residual may be null.
  void (*finish)(const Acc* sums, int64_t sums_stride, int64_t count, const Acc* bias,
                 const T* const* residual, Activation activation, T* const* out,
                 int64_t channels) = nullptr;
  // out = activation(in).
  void (*activate)(const T* in, Activation activation, T* out, int64_t channels) = nullptr;
  // out = in, widened.
  void (*widen)(const T* in, Acc* out, int64_t channels) = nullptr;
  // out = in, rounded to the storage type.
  void (*narrow)(const Acc* in, T* out, int64_t channels) = nullptr;
  // out += in.
  void (*add)(const T* in, Acc* out, int64_t channels) = nullptr;
  // A grouped convolution by vectors of output channels: sums over the taps, finished and stored.
  int64_t lanes = 0;
  void (*grouped)(const LaneBlocks<Acc>& blocks, const LanePixels<T, Acc>& pixels) = nullptr;
  // The same for all pixels of a row, stored as they are.
  void (*grouped_row)(const LaneBlocks<Acc>& blocks, const LaneRow<T, Acc>& row) = nullptr;
  // The gradient of its weight: sums[block][step][sum_of[t]][lanes] += over the pixels their
  // gradient * their input at tap t. sum_taps: of a block and step.
  void (*grouped_products)(const LaneBlocks<Acc>& blocks, const LaneProducts<T>& pixels,
                           const int64_t* sum_of, int64_t sum_taps, Acc* sums) = nullptr;
  // Pixels as they are where keep[m] has all bits, zero where it has none.
  void (*copy_kept)(const T* from, const int32_t* keep, int64_t count, T* to,
                    int64_t channels) = nullptr;
  // out[c] += the sum of from[positions[m] * channels + c] over m < count.
  void (*add_pixels)(const T* from, const int32_t* positions, int64_t count, Acc* out,
                     int64_t channels) = nullptr;
  // out[c] += in[c] * scale[c].
  void (*multiply_add)(const T* in, const Acc* scale, Acc* out, int64_t channels) = nullptr;
  // to[2 c] = first[c], to[2 c + 1] = second[c].
  void (*interleave)(const T* first, const T* second, T* to, int64_t channels) = nullptr;
  // Neighbouring channels of a weight row [channel][tap] as words [channel / 2][tap][2]; channels
  // is even. Reads and writes up to 32 elements past the end.
  void (*pair_channels)(const T* from, int64_t channels, int64_t taps, T* to) = nullptr;
  // out[c] += a[c] * b[c].
  void (*product_add)(const T* a, const T* b, Acc* out, int64_t channels) = nullptr;
  // out[0], out[1] = sum of in[c] * first[c], in[c] * second[c].
  void (*dot_pair)(const T* in, const Acc* first, const Acc* second, Acc* out,
                   int64_t channels) = nullptr;
};

// to_rows[k][n] = from_rows[n][k] for n < rows, k < columns.
using Transpose = void (*)(const float* const* from_rows, int64_t rows, float* const* to_rows,
                           int64_t columns);

// Writes offset + i for each non-zero mask[i], ascending; returns how many. `to` needs room for
// length and kSpareEntries more.
using Compact = int64_t (*)(const uint8_t* mask, int64_t length, int32_t offset, int32_t* to);
inline constexpr int64_t kSpareEntries = 16;

// [0] is the wide tile, [1] a narrow one for few output channels, [kNarrowest] one for fewer still,
// of the forward pass, where there is one: multiply is null otherwise.
inline constexpr int64_t kNarrowest = 2;
struct KernelTable {
  const char* name = "";
  GemmKernel<float, float> gemm_float[3];
  GemmKernel<double, double> gemm_double[3];
  GemmKernel<BFloat16, float>
      gemm_bfloat16[3];  // multiply is null where the ISA has no dot product
  RowKernel<float, float> row_float;
  RowKernel<double, double> row_double;
  RowKernel<BFloat16, float> row_bfloat16;
  RowKernel<Half, float> row_half;
  Transpose transpose = nullptr;
  Compact compact = nullptr;
};

KernelTable make_portable_table();
KernelTable make_avx2_table();
KernelTable make_avx512_table();
KernelTable make_avx512bf16_table();

// The table of the instruction set in use (isa.h), made once.
const KernelTable& kernels();

template <class T>
struct AccumulateTraits {
  using Acc = float;
};
template <>
struct AccumulateTraits<double> {
  using Acc = double;
};
template <class T>
using AccumulateType = typename AccumulateTraits<T>::Acc;

template <class A>
const GemmKernel<A, AccumulateType<A>>* gemm_kernels(const KernelTable& table);
template <>
inline const GemmKernel<float, float>* gemm_kernels<float>(const KernelTable& table) {
  return table.gemm_float;
}
template <>
inline const GemmKernel<double, double>* gemm_kernels<double>(const KernelTable& table) {
  return table.gemm_double;
}
template <>
inline const GemmKernel<BFloat16, float>* gemm_kernels<BFloat16>(const KernelTable& table) {
  return table.gemm_bfloat16;
}

template <class T>
const RowKernel<T, AccumulateType<T>>& row_kernel(const KernelTable& table);
template <>
inline const RowKernel<float, float>& row_kernel<float>(const KernelTable& table) {
  return table.row_float;
}
template <>
inline const RowKernel<double, double>& row_kernel<double>(const KernelTable& table) {
  return table.row_double;
}
template <>
inline const RowKernel<BFloat16, float>& row_kernel<BFloat16>(const KernelTable& table) {
  return table.row_bfloat16;
}
template <>
inline const RowKernel<Half, float>& row_kernel<Half>(const KernelTable& table) {
  return table.row_half;
}

}  // namespace perfconv::cpu
