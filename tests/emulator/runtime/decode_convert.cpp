// cvt between all scalar types, to packed halves and to tf32.
#include <cmath>
#include <limits>

#include "runtime/decode.h"
#include "runtime/half.h"
#include "runtime/ops.h"

namespace emulator {
namespace {

// Rounding to integers, and of results that do not fit the narrower type.
enum Rounding { kNone, kToNearest, kToZero, kDown, kUp };
constexpr int kRoundingMask = 7;
enum Option { kSaturate = 8, kRelu = 16, kWideSource = 32 };  // a 64-bit register's low bits

template <class T>
constexpr bool kIsFloat =
    std::is_floating_point_v<T> || std::is_same_v<T, Half> || std::is_same_v<T, BFloat>;

template <class T>
T load(Storage<T> stored) {
  if constexpr (std::is_same_v<T, Half> || std::is_same_v<T, BFloat>) {
    return T{static_cast<uint16_t>(stored)};
  } else {
    return unpack<T>(stored);
  }
}
template <class T>
double to_double(T value) {
  if constexpr (std::is_floating_point_v<T>) {
    return static_cast<double>(value);
  } else {
    return static_cast<double>(to_float(value));
  }
}

double round_to_integer(double x, int rounding) {
  switch (rounding) {
    case kToNearest:
      return std::nearbyint(x);
    case kToZero:
      return std::trunc(x);
    case kDown:
      return std::floor(x);
    case kUp:
      return std::ceil(x);
    default:
      return x;
  }
}

// NaN becomes 0, what does not fit the nearest bound.
template <class D>
D integer_of(double x) {
  if (x != x) return 0;
  constexpr D kLowest = std::numeric_limits<D>::min();
  constexpr D kHighest = std::numeric_limits<D>::max();
  if (x <= static_cast<double>(kLowest)) return kLowest;
  if (x >= static_cast<double>(kHighest)) return kHighest;
  return static_cast<D>(x);
}

template <class D, class S>
D clamp_integer(S value) {
  using Wide = __int128;
  const Wide low = std::numeric_limits<D>::min();
  const Wide high = std::numeric_limits<D>::max();
  return static_cast<D>(std::clamp(static_cast<Wide>(value), low, high));
}

// Rounded to nearest even, or toward zero.
template <class D>
D float_of(double x, bool truncates) {
  if constexpr (std::is_same_v<D, double>) {
    return x;
  } else if constexpr (std::is_same_v<D, float>) {
    const auto nearest = static_cast<float>(x);
    const bool is_beyond = std::fabs(static_cast<double>(nearest)) > std::fabs(x);
    return truncates && is_beyond ? std::nextafter(nearest, 0.0f) : nearest;
  } else {
    D nearest;
    if constexpr (std::is_same_v<D, Half>) {
      nearest = to_half(x);
    } else {
      nearest = to_bfloat(x);
    }
    const bool is_beyond = std::fabs(to_double(nearest)) > std::fabs(x);
    if (truncates && is_beyond) --nearest.bits;
    return nearest;
  }
}

double limit(double x, int32_t options) {
  if ((options & kSaturate) != 0) return x > 0 ? std::min(x, 1.0) : 0.0;
  return (options & kRelu) != 0 && x < 0 ? 0.0 : x;
}

template <class D>
Storage<D> store(D value) {
  if constexpr (std::is_same_v<D, Half> || std::is_same_v<D, BFloat>) {
    return value.bits;
  } else {
    return pack<D>(value);
  }
}

template <class D, class S>
void run_convert(Execution& x, const Instruction& i) {
  const Storage<S>* a = x.at<Storage<S>>(i.a);
  const uint64_t* wide = x.at<uint64_t>(i.a);
  const int32_t options = i.option;
  const bool is_wide = sizeof(S) < 8 && (options & kWideSource) != 0;
  const int rounding = options & kRoundingMask;
  each_lane<Storage<D>>(x, i.d, [=](int lane) {
    const S value = load<S>(is_wide ? static_cast<Storage<S>>(wide[lane]) : a[lane]);
    if constexpr (!kIsFloat<S> && !kIsFloat<D>) {
      if ((options & kSaturate) != 0) return store<D>(clamp_integer<D>(value));
      return store<D>(static_cast<D>(value));
    } else if constexpr (!kIsFloat<D>) {
      return store<D>(integer_of<D>(round_to_integer(to_double(value), rounding)));
    } else if constexpr (kIsFloat<S>) {
      double result = to_double(value);
      if constexpr (sizeof(D) >= sizeof(S)) result = round_to_integer(result, rounding);
      return store<D>(float_of<D>(limit(result, options), rounding == kToZero));
    } else if constexpr (std::is_floating_point_v<D>) {
      return store<D>(static_cast<D>(value));
    } else {
      return store<D>(float_of<D>(static_cast<double>(value), rounding == kToZero));
    }
  });
}

// To a wider register than the type: the rest of it is the sign or zero.
template <class D>
void extend(Execution& x, const Instruction& i) {
  uint32_t* d = x.at<uint32_t>(i.d);
  for_each_lane(x.mask, [&](int lane) {
    d[lane] = static_cast<uint32_t>(static_cast<int32_t>(static_cast<D>(d[lane])));
  });
}
template <class D, class S>
void run_convert_extended(Execution& x, const Instruction& i) {
  run_convert<D, S>(x, i);
  extend<D>(x, i);
}

// d = {a, b}: a in the high half.
template <class T>
void run_pack(Execution& x, const Instruction& i) {
  const int32_t options = i.option;
  binary<uint32_t, float, float>(x, i, [=](float a, float b) {
    const bool truncates = (options & kRoundingMask) == kToZero;
    const T high = float_of<T>(limit(double{a}, options), truncates);
    const T low = float_of<T>(limit(double{b}, options), truncates);
    return uint32_t{high.bits} << 16 | low.bits;
  });
}

// Ties away from zero (rna) or to even (rn); the low 13 bits become zero.
void run_to_tf32(Execution& x, const Instruction& i) {
  const bool is_to_even = i.option == kToNearest;
  unary<uint32_t, uint32_t>(x, i, [=](uint32_t a) {
    if ((a & 0x7F800000u) == 0x7F800000u) return a;
    const uint32_t half = is_to_even ? 0xFFFu + (a >> 13 & 1) : 0x1000u;
    return (a + half) & 0xFFFFE000u;
  });
}

// ---- decoding ----------------------------------------------------------------------------------

template <class F>
Handler for_type(ptx::Type type, F f) {
  using Kind = ptx::Type::Kind;
  const bool is_signed = type.kind == Kind::kSigned;
  if (type.is_packed) throw Unsupported{"packed type"};
  if (type.kind == Kind::kBFloat) return f.template operator()<BFloat>();
  if (type.kind == Kind::kFloat) {
    if (type.bits == 16) return f.template operator()<Half>();
    return type.bits == 32 ? f.template operator()<float>() : f.template operator()<double>();
  }
  switch (type.bits) {
    case 8:
      return is_signed ? f.template operator()<int8_t>() : f.template operator()<uint8_t>();
    case 16:
      return is_signed ? f.template operator()<int16_t>() : f.template operator()<uint16_t>();
    case 32:
      return is_signed ? f.template operator()<int32_t>() : f.template operator()<uint32_t>();
    case 64:
      return is_signed ? f.template operator()<int64_t>() : f.template operator()<uint64_t>();
    default:
      throw Unsupported{"type"};
  }
}

Handler conversion(ptx::Type to, ptx::Type from) {
  return for_type(to, [&]<class D>() -> Handler {
    return for_type(from, [&]<class S>() -> Handler {
      if constexpr (!kIsFloat<D> && std::is_signed_v<D> && sizeof(D) < 4) {
        return run_convert_extended<D, S>;
      } else {
        return run_convert<D, S>;
      }
    });
  });
}

int32_t conversion_options(const ptx::Statement& s) {
  int32_t options = kNone;
  if (s.has("rni")) options = kToNearest;
  if (s.has("rzi") || s.has("rz")) options = kToZero;
  if (s.has("rmi")) options = kDown;
  if (s.has("rpi")) options = kUp;
  if (s.has("rm") || s.has("rp")) throw Unsupported{"rounding"};
  return options | (s.has("sat") ? kSaturate : 0) | (s.has("relu") ? kRelu : 0);
}

}  // namespace

bool decode_convert(Decoder& decoder, const ptx::Statement& s, Instruction* i) {
  if (s.parts[0] != "cvt") return false;
  if (s.has("tf32")) {
    if (!s.has("rna") && !s.has("rn")) throw Unsupported{"rounding"};
    i->run = run_to_tf32;
    i->option = s.has("rn") ? kToNearest : kNone;
    i->d = decoder.result(s.operands.at(0), 32);
    i->a = decoder.source(s.operands.at(1), 32);
    return true;
  }
  const ptx::Type to = first_type(s);
  const ptx::Type from = second_type(s);
  i->option = conversion_options(s);
  if (to.is_packed) {
    if (from.kind != ptx::Type::Kind::kFloat || from.bits != 32 || s.operands.size() != 3) {
      throw Unsupported{"types"};
    }
    i->run = to.kind == ptx::Type::Kind::kBFloat ? run_pack<BFloat> : run_pack<Half>;
    i->d = decoder.result(s.operands[0], 32);
    i->a = decoder.source(s.operands[1], 32);
    i->b = decoder.source(s.operands[2], 32);
    return true;
  }
  i->run = conversion(to, from);
  i->d = decoder.result(s.operands.at(0), to.bits);
  bool is_wide = false;
  i->a = decoder.source_as_is(s.operands.at(1), from.bits, &is_wide);
  if (is_wide) i->option |= kWideSource;
  return true;
}

}  // namespace emulator
