// The two 16-bit storage types as plain bit patterns, with their conversions to and from float.
// Kernels use these instead of torch's classes so that no inline torch function is compiled with
// the instruction set of one kernel file and then shared with another.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

namespace perfconv {

struct BFloat16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

static inline float to_float(float value) { return value; }
static inline double to_float(double value) { return value; }

static inline float to_float(BFloat16 value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}

// IEEE binary16: shift the payload into a float whose exponent bias is corrected by one multiply,
// which also turns subnormals into normal floats; infinities and NaN get their exponent back.
static inline float to_float(Half value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t payload = static_cast<uint32_t>(value.bits & 0x7fffu) << 13;
  const float scaled = std::bit_cast<float>(payload) * 0x1p112f;
  const uint32_t special = (value.bits & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(scaled) | special | sign);
}

// Round to nearest even; NaN stays NaN (quiet).
static inline BFloat16 to_bfloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return BFloat16{static_cast<uint16_t>(is_nan ? 0x7fc0u | (bits >> 16) : rounded)};
}

// Round to nearest even by adding a power of two that pushes the dropped bits out of the
// significand; overflow gives infinity, NaN stays NaN.
static inline Half to_half(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t sign = (bits >> 16) & 0x8000u;
  uint32_t result;
  if (magnitude > 0x7f800000u) {
    result = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {
    result = 0x7c00u;  // 65520 and above round to infinity
  } else if (magnitude < 0x38800000u) {
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;  // subnormal: 2^-24 steps
    result = std::bit_cast<uint32_t>(shifted) - 0x3f000000u;
  } else {
    result = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  return Half{static_cast<uint16_t>(sign | result)};
}

template <class T, class Value>
static inline T from_float(Value value) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return to_bfloat16(static_cast<float>(value));
  } else if constexpr (std::is_same_v<T, Half>) {
    return to_half(static_cast<float>(value));
  } else {
    return static_cast<T>(value);
  }
}

}  // namespace perfconv
