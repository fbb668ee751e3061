// Bias, residual and activation of one pixel's sums.
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

}  // namespace
}  // namespace perfconv::cpu
