// Loops along the channels of one pixel: epilogue, conversions. Plain loops that
// the compiler vectorises for the instruction set of the file that includes this one.
// Everything is in an unnamed namespace: two instruction sets must never share one instance.
#pragma once

#include "cpu/kernels/epilogue.h"
#include "cpu/kernels/grouped_rows.h"

namespace perfconv::cpu {
namespace {

template <class T, class Acc>
void activate_row(const T* in, Activation activation, T* out, int64_t channels) {
  visit_activation(activation, [&]<Activation kActivation>() {
    for (int64_t c = 0; c < channels; ++c) {
      out[c] = from_float<T>(apply<kActivation>(Acc(to_float(in[c]))));
    }
  });
}

template <class T, class Acc>
void widen_row(const T* in, Acc* out, int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) out[c] = Acc(to_float(in[c]));
}

template <class T, class Acc>
void narrow_row(const Acc* in, T* out, int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) out[c] = from_float<T>(in[c]);
}

// The bits of T, which a mask can be applied to.
template <class T>
using BitsOf = std::conditional_t<sizeof(T) == 2, uint16_t,
                                  std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>;

// Without a branch: which pixels are kept is hard to predict.
template <class T>
void copy_kept_rows(const T* from, const int32_t* keep, int64_t count, T* to, int64_t channels) {
  for (int64_t m = 0; m < count; ++m) {
    const auto bits = static_cast<BitsOf<T>>(int64_t{keep[m]});
    const T* pixel = from + m * channels;
    T* copy = to + m * channels;
    for (int64_t c = 0; c < channels; ++c) {
      copy[c] = std::bit_cast<T>(static_cast<BitsOf<T>>(std::bit_cast<BitsOf<T>>(pixel[c]) & bits));
    }
  }
}

template <class T, class Acc>
void add_row(const T* in, Acc* out, int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) out[c] += Acc(to_float(in[c]));
}

// Four vectors of sums at a time stay in registers.
template <class T, class Acc>
void add_pixel_rows(const T* from, const int32_t* positions, int64_t count, Acc* out,
                    int64_t channels) {
  using Vector = Lanes<Acc>;
  constexpr int64_t kVecs = 4;
  constexpr int64_t kWidth = kVecs * Vector::kCount;
  int64_t c = 0;
  for (; c + kWidth <= channels; c += kWidth) {
    typename Vector::Vec sums[kVecs];
    for (int64_t j = 0; j < kVecs; ++j) sums[j] = Vector::load(out + c + j * Vector::kCount);
    for (int64_t m = 0; m < count; ++m) {
      const T* pixel = from + positions[m] * channels + c;
      for (int64_t j = 0; j < kVecs; ++j) sums[j] += Vector::load(pixel + j * Vector::kCount);
    }
    for (int64_t j = 0; j < kVecs; ++j) Vector::store(out + c + j * Vector::kCount, sums[j]);
  }
  for (int64_t m = 0; m < count && c < channels; ++m) {
    add_row(from + positions[m] * channels + c, out + c, channels - c);
  }
}

template <class T, class Acc>
void multiply_add_row(const T* in, const Acc* scale, Acc* out, int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) out[c] += Acc(to_float(in[c])) * scale[c];
}

template <class T>
void interleave_rows(const T* first, const T* second, T* to, int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) {
    to[2 * c] = first[c];
    to[2 * c + 1] = second[c];
  }
}

template <class T>
void pair_channels(const T* from, int64_t channels, int64_t taps, T* to) {
  for (int64_t c = 0; c < channels; c += 2) {
    interleave_rows(from + c * taps, from + (c + 1) * taps, to + c * taps, taps);
  }
}

template <class T, class Acc>
void product_add_row(const T* a, const T* b, Acc* out, int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) out[c] += Acc(to_float(a[c])) * Acc(to_float(b[c]));
}

template <class T, class Acc>
void dot_pair_row(const T* in, const Acc* first, const Acc* second, Acc* out, int64_t channels) {
  constexpr int64_t kLanes = 32;  // sums kept apart, so that the loop vectorises
  Acc sums[2][kLanes] = {};
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) {
    for (int64_t i = 0; i < kLanes; ++i) {
      const Acc value = Acc(to_float(in[c + i]));
      sums[0][i] += value * first[c + i];
      sums[1][i] += value * second[c + i];
    }
  }
  for (int64_t i = 0; c < channels; ++c, ++i) {
    const Acc value = Acc(to_float(in[c]));
    sums[0][i] += value * first[c];
    sums[1][i] += value * second[c];
  }
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) {
      sums[0][i] += sums[0][i + half];
      sums[1][i] += sums[1][i + half];
    }
  }
  out[0] = sums[0][0];
  out[1] = sums[1][0];
}

template <class T>
RowKernel<T, AccumulateType<T>> make_row_kernel() {
  using Acc = AccumulateType<T>;
  return RowKernel<T, Acc>{
      .finish = &finish_rows<T, Acc>,
      .activate = &activate_row<T, Acc>,
      .widen = &widen_row<T, Acc>,
      .narrow = &narrow_row<T, Acc>,
      .add = &add_row<T, Acc>,
      .lanes = Lanes<Acc>::kCount,
      .grouped = &grouped_rows<T, Acc>,
      .grouped_row = &grouped_row<T, Acc>,
      .grouped_products = &grouped_products<T, Acc>,
      .copy_kept = &copy_kept_rows<T>,
      .add_pixels = &add_pixel_rows<T, Acc>,
      .multiply_add = &multiply_add_row<T, Acc>,
      .interleave = &interleave_rows<T>,
      .pair_channels = &pair_channels<T>,
      .product_add = &product_add_row<T, Acc>,
      .dot_pair = &dot_pair_row<T, Acc>,
  };
}

inline void transpose_rows(const float* const* from_rows, int64_t rows, float* const* to_rows,
                           int64_t columns) {
  for (int64_t k = 0; k < columns; ++k) {
    for (int64_t n = 0; n < rows; ++n) to_rows[k][n] = from_rows[n][k];
  }
}

inline int64_t compact_bytes(const uint8_t* mask, int64_t length, int32_t offset, int32_t* to) {
  int64_t count = 0;
  int64_t i = 0;
  for (; i + 8 <= length; i += 8) {
    uint64_t word;
    __builtin_memcpy(&word, mask + i, sizeof(word));
    if (word == 0) continue;
    for (int64_t j = 0; j < 8; ++j) {  // write always, advance if active: no branch to mispredict
      to[count] = offset + static_cast<int32_t>(i + j);
      count += mask[i + j] != 0;
    }
  }
  for (; i < length; ++i) {
    if (mask[i] != 0) to[count++] = offset + static_cast<int32_t>(i);
  }
  return count;
}

inline void set_row_kernels(KernelTable& table) {
  table.compact = &compact_bytes;
  table.transpose = &transpose_rows;
  table.row_float = make_row_kernel<float>();
  table.row_double = make_row_kernel<double>();
  table.row_bfloat16 = make_row_kernel<BFloat16>();
  table.row_half = make_row_kernel<Half>();
}

}  // namespace
}  // namespace perfconv::cpu
