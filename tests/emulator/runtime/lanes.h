// The 32 lanes of a warp: masks, and how values lie in registers.
//
// A register is an array over lanes: 8 bytes each for 64-bit types, 4 bytes for narrower ones (in
// the low bits). A predicate register is one LaneMask.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

namespace emulator {

using LaneMask = uint32_t;
constexpr int kLanes = 32;
constexpr LaneMask kAllLanes = ~LaneMask{0};

constexpr LaneMask lane_bit(int lane) { return LaneMask{1} << lane; }
inline int first_lane(LaneMask mask) { return std::countr_zero(mask); }

template <class F>
inline void for_each_lane(LaneMask mask, F f) {
  for (; mask != 0; mask &= mask - 1) f(std::countr_zero(mask));
}

// What one lane of a register holding a T is stored as.
template <class T>
using Storage = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;

template <class T>
inline T unpack(Storage<T> stored) {
  if constexpr (std::is_floating_point_v<T>) {
    return std::bit_cast<T>(stored);
  } else {
    return static_cast<T>(stored);
  }
}

// Narrow integers are kept zero-extended to the width of their type.
template <class T>
inline Storage<T> pack(T value) {
  if constexpr (std::is_floating_point_v<T>) {
    return std::bit_cast<Storage<T>>(value);
  } else {
    return static_cast<Storage<T>>(static_cast<std::make_unsigned_t<T>>(value));
  }
}

}  // namespace emulator
