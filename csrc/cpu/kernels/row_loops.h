// Loops along the channels of one pixel: epilogue, conversions, depthwise sums. Plain loops that
// the compiler vectorises for the instruction set of the file that includes this one.
// Everything is in an unnamed namespace: two instruction sets must never share one instance.
#pragma once

#include "cpu/kernels/kernel_table.h"

namespace perfconv::cpu {
namespace {

// e^x in float for the epilogue: 2^n times a degree-6 polynomial of the remainder; at most 2 ulp
// from the correctly rounded value in [-87, 88]; infinity above, clamped below. Branch-free so that
// it vectorises.
inline float exponential(float x) {
  const bool is_huge = x > 88.3f;
  x = x < -87.3f ? -87.3f : x;
  x = x > 88.3f ? 88.3f : x;
  const float rounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float n = (x * 1.44269504f + rounder) - rounder;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const float power = p * std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
  return is_huge ? __builtin_inff() : power;
}

inline double exponential(double x) { return __builtin_exp(x); }

template <Activation kActivation, class Acc>
inline Acc apply(Acc x) {
  if constexpr (kActivation == Activation::kRelu) {
    return x < Acc(0) ? Acc(0) : x;  // NaN stays NaN, as in torch
  } else if constexpr (kActivation == Activation::kRelu6) {
    const Acc low = x < Acc(0) ? Acc(0) : x;
    return low > Acc(6) ? Acc(6) : low;
  } else if constexpr (kActivation == Activation::kSilu) {
    return x / (Acc(1) + exponential(-x));
  } else if constexpr (kActivation == Activation::kHardswish) {
    const Acc shifted = x + Acc(3);
    const Acc low = shifted < Acc(0) ? Acc(0) : shifted;
    return x * (low > Acc(6) ? Acc(6) : low) / Acc(6);
  } else {
    return x;
  }
}

template <class Function>
inline void visit_activation(Activation activation, Function function) {
  switch (activation) {
    case Activation::kNone:
      return function.template operator()<Activation::kNone>();
    case Activation::kRelu:
      return function.template operator()<Activation::kRelu>();
    case Activation::kRelu6:
      return function.template operator()<Activation::kRelu6>();
    case Activation::kSilu:
      return function.template operator()<Activation::kSilu>();
    case Activation::kHardswish:
      return function.template operator()<Activation::kHardswish>();
  }
}

template <class T, class Acc>
void finish_rows(const Acc* sums, int64_t sums_stride, int64_t count, const Acc* bias,
                 const T* const* residual, Activation activation, T* const* out, int64_t channels) {
  visit_activation(activation, [&]<Activation kActivation>() {
    for (int64_t m = 0; m < count; ++m) {
      const Acc* row = sums + m * sums_stride;
      T* to = out[m];
      if (residual != nullptr) {
        const T* plus = residual[m];
        for (int64_t c = 0; c < channels; ++c) {
          const Acc value = row[c] + (bias != nullptr ? bias[c] : Acc(0));
          to[c] = from_float<T>(apply<kActivation>(value + Acc(to_float(plus[c]))));
        }
      } else if (bias != nullptr) {
        for (int64_t c = 0; c < channels; ++c) {
          to[c] = from_float<T>(apply<kActivation>(row[c] + bias[c]));
        }
      } else {
        for (int64_t c = 0; c < channels; ++c) to[c] = from_float<T>(apply<kActivation>(row[c]));
      }
    }
  });
}

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

template <class T, class Acc>
void add_row(const T* in, Acc* out, int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) out[c] += Acc(to_float(in[c]));
}

// kWidth channels of one pixel, whose sums stay in registers while the taps run.
template <int64_t kWidth, class T, class Acc>
inline void depthwise_block(const T* const* taps, int64_t count, const Acc* weight,
                            int64_t channels, int64_t c, Acc* sums) {
  Acc block[kWidth] = {};
  for (int64_t t = 0; t < count; ++t) {
    if (taps[t] == nullptr) continue;
    const T* in = taps[t] + c;
    const Acc* scale = weight + t * channels + c;
    for (int64_t i = 0; i < kWidth; ++i) block[i] += Acc(to_float(in[i])) * scale[i];
  }
  for (int64_t i = 0; i < kWidth; ++i) sums[c + i] = block[i];
}

template <class T, class Acc>
void depthwise_rows(const T* const* taps, int64_t pixels, int64_t count, const Acc* weight,
                    Acc* sums, int64_t channels) {
  for (int64_t p = 0; p < pixels; ++p, taps += count, sums += channels) {
    int64_t c = 0;
    for (; c + 64 <= channels; c += 64) {
      depthwise_block<64>(taps, count, weight, channels, c, sums);
    }
    for (; c + 16 <= channels; c += 16) {
      depthwise_block<16>(taps, count, weight, channels, c, sums);
    }
    for (; c < channels; ++c) depthwise_block<1>(taps, count, weight, channels, c, sums);
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
      .depthwise = &depthwise_rows<T, Acc>,
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

void set_row_kernels(KernelTable& table) {
  table.transpose = &transpose_rows;
  table.row_float = make_row_kernel<float>();
  table.row_double = make_row_kernel<double>();
  table.row_bfloat16 = make_row_kernel<BFloat16>();
  table.row_half = make_row_kernel<Half>();
}

}  // namespace
}  // namespace perfconv::cpu
