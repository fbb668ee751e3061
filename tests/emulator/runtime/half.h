// float16 and bfloat16 as stored, and conversions with rounding to nearest even.
#pragma once

#if !defined(__x86_64__) || !defined(__F16C__) || !defined(__AVX2__) || !defined(__FMA__)
#error "The emulator runs on x86-64 with F16C, AVX2 and FMA only; leave PERFCONV_EMULATED off."
#endif

#include <immintrin.h>

#include <bit>
#include <cmath>
#include <cstdint>

namespace emulator {

struct Half {
  uint16_t bits;
};
struct BFloat {
  uint16_t bits;
};

inline float to_float(Half h) { return _cvtsh_ss(h.bits); }
inline float to_float(BFloat b) { return std::bit_cast<float>(uint32_t{b.bits} << 16); }

// Rounds to float so that a second rounding to 16 bits gives what one rounding would have given:
// inexact results get an odd last bit.
inline float round_to_odd(double x) {
  const float nearest = static_cast<float>(x);
  if (static_cast<double>(nearest) == x || x != x || std::isinf(nearest)) return nearest;
  uint32_t bits = std::bit_cast<uint32_t>(nearest);
  if (std::fabs(static_cast<double>(nearest)) > std::fabs(x)) --bits;
  return std::bit_cast<float>(bits | 1);
}

inline Half to_half(float x) { return {_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT)}; }
inline Half to_half(double x) { return to_half(round_to_odd(x)); }

inline BFloat to_bfloat(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (x != x) return {0x7FFF};
  return {static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}
inline BFloat to_bfloat(double x) { return to_bfloat(round_to_odd(x)); }

inline float tf32_to_float(uint32_t bits) { return std::bit_cast<float>(bits & 0xFFFFE000u); }

}  // namespace emulator
