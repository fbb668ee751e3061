// Integer arithmetic: add, sub, mul, mad, div, rem, min, max, neg, abs, sad, dp4a.
#include <limits>

#include "runtime/decode.h"
#include "runtime/ops.h"

namespace emulator {
namespace {

template <class T>
using Unsigned = std::make_unsigned_t<T>;

// Twice as wide, of the same sign.
template <class T>
using Wide = std::conditional_t<
    sizeof(T) == 8, std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>,
    std::conditional_t<sizeof(T) == 4, std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>,
                       std::conditional_t<std::is_signed_v<T>, int32_t, uint32_t>>>;

template <class T>
T high(T a, T b) {
  return static_cast<T>((Wide<T>{a} * Wide<T>{b}) >> (8 * sizeof(T)));
}

constexpr auto kAdd = []<class T>(T a, T b) {
  return static_cast<T>(static_cast<Unsigned<T>>(a) + static_cast<Unsigned<T>>(b));
};
constexpr auto kSub = []<class T>(T a, T b) {
  return static_cast<T>(static_cast<Unsigned<T>>(a) - static_cast<Unsigned<T>>(b));
};
constexpr auto kMulLow = []<class T>(T a, T b) {
  return static_cast<T>(uint64_t{static_cast<Unsigned<T>>(a)} * static_cast<Unsigned<T>>(b));
};
constexpr auto kMulHigh = []<class T>(T a, T b) { return high(a, b); };
constexpr auto kMadLow = []<class T>(T a, T b, T c) { return kAdd(kMulLow(a, b), c); };
constexpr auto kMadHigh = []<class T>(T a, T b, T c) { return kAdd(high(a, b), c); };
// Division by zero gives all ones and the dividend; hardware promises nothing better.
constexpr auto kDiv = []<class T>(T a, T b) {
  if (b == 0) return static_cast<T>(~T{0});
  if constexpr (std::is_signed_v<T>) {
    if (b == -1) return kSub(T{0}, a);
  }
  return static_cast<T>(a / b);
};
constexpr auto kRem = []<class T>(T a, T b) {
  if (b == 0) return a;
  if constexpr (std::is_signed_v<T>) {
    if (b == -1) return T{0};
  }
  return static_cast<T>(a % b);
};
constexpr auto kMin = []<class T>(T a, T b) { return a < b ? a : b; };
constexpr auto kMax = []<class T>(T a, T b) { return a > b ? a : b; };
constexpr auto kNeg = []<class T>(T a) { return kSub(T{0}, a); };
constexpr auto kAbs = []<class T>(T a) {
  if constexpr (std::is_signed_v<T>) {
    return a < 0 ? kSub(T{0}, a) : a;
  } else {
    return a;
  }
};
constexpr auto kSad = []<class T>(T a, T b, T c) {
  return kAdd(c, a < b ? kSub(b, a) : kSub(a, b));
};
constexpr auto kAddSaturating = [](int32_t a, int32_t b) {
  const int64_t sum = int64_t{a} + b;
  return static_cast<int32_t>(std::clamp<int64_t>(sum, INT32_MIN, INT32_MAX));
};

template <class T, auto F>
void run_unary(Execution& x, const Instruction& i) {
  unary<T, T>(x, i, F);
}
template <class T, auto F>
void run_binary(Execution& x, const Instruction& i) {
  binary<T, T, T>(x, i, F);
}
template <class T, auto F>
void run_ternary(Execution& x, const Instruction& i) {
  ternary<T, T, T, T>(x, i, F);
}
template <class T>
void run_mul_wide(Execution& x, const Instruction& i) {
  binary<Wide<T>, T, T>(x, i, [](T a, T b) { return static_cast<Wide<T>>(Wide<T>{a} * b); });
}
template <class T>
void run_mad_wide(Execution& x, const Instruction& i) {
  ternary<Wide<T>, T, T, Wide<T>>(
      x, i, [](T a, T b, Wide<T> c) { return kAdd(static_cast<Wide<T>>(Wide<T>{a} * b), c); });
}

// d = c + dot product of four signed or unsigned bytes.
template <class A, class B>
void run_dp4a(Execution& x, const Instruction& i) {
  ternary<uint32_t, uint32_t, uint32_t, uint32_t>(x, i, [](uint32_t a, uint32_t b, uint32_t c) {
    for (int byte = 0; byte < 4; ++byte) {
      const int product = static_cast<A>(a >> 8 * byte) * static_cast<B>(b >> 8 * byte);
      c += static_cast<uint32_t>(product);
    }
    return c;
  });
}

// f.template operator()<T>() for the integer type; .b types count as unsigned.
template <class F>
Handler for_integer(ptx::Type type, F f) {
  const bool is_signed = type.kind == ptx::Type::Kind::kSigned;
  switch (type.bits) {
    case 16:
      return is_signed ? f.template operator()<int16_t>() : f.template operator()<uint16_t>();
    case 32:
      return is_signed ? f.template operator()<int32_t>() : f.template operator()<uint32_t>();
    case 64:
      return is_signed ? f.template operator()<int64_t>() : f.template operator()<uint64_t>();
    default:
      throw Unsupported{"integer type"};
  }
}

template <auto F>
Handler unary_of(ptx::Type type) {
  return for_integer(type, []<class T>() -> Handler { return run_unary<T, F>; });
}
template <auto F>
Handler binary_of(ptx::Type type) {
  return for_integer(type, []<class T>() -> Handler { return run_binary<T, F>; });
}
template <auto F>
Handler ternary_of(ptx::Type type) {
  return for_integer(type, []<class T>() -> Handler { return run_ternary<T, F>; });
}

Handler wide_handler(ptx::Type type, bool is_mad) {
  const bool is_signed = type.kind == ptx::Type::Kind::kSigned;
  if (type.bits == 16) {
    if (is_mad) return is_signed ? run_mad_wide<int16_t> : run_mad_wide<uint16_t>;
    return is_signed ? run_mul_wide<int16_t> : run_mul_wide<uint16_t>;
  }
  if (type.bits != 32) throw Unsupported{"integer type"};
  if (is_mad) return is_signed ? run_mad_wide<int32_t> : run_mad_wide<uint32_t>;
  return is_signed ? run_mul_wide<int32_t> : run_mul_wide<uint32_t>;
}

Handler dp4a_handler(const ptx::Statement& s) {
  const bool is_a_signed = s.parts.at(1) == "s32";
  const bool is_b_signed = s.parts.at(2) == "s32";
  if (is_a_signed) return is_b_signed ? run_dp4a<int8_t, int8_t> : run_dp4a<int8_t, uint8_t>;
  return is_b_signed ? run_dp4a<uint8_t, int8_t> : run_dp4a<uint8_t, uint8_t>;
}

struct Operation {
  const char* opcode;
  int sources;
  Handler (*handler)(ptx::Type);
};
constexpr Operation kOperations[] = {
    {"add", 2, binary_of<kAdd>}, {"sub", 2, binary_of<kSub>}, {"div", 2, binary_of<kDiv>},
    {"rem", 2, binary_of<kRem>}, {"min", 2, binary_of<kMin>}, {"max", 2, binary_of<kMax>},
    {"neg", 1, unary_of<kNeg>},  {"abs", 1, unary_of<kAbs>},  {"sad", 3, ternary_of<kSad>},
};

void decode_product(Decoder& decoder, const ptx::Statement& s, Instruction* i, ptx::Type type) {
  const bool is_mad = s.parts[0] == "mad";
  const bool is_wide = s.has("wide");
  const int result_bits = is_wide ? 2 * type.bits : type.bits;
  i->d = decoder.result(s.operands.at(0), result_bits);
  i->a = decoder.source(s.operands.at(1), type.bits);
  i->b = decoder.source(s.operands.at(2), type.bits);
  if (is_mad) i->c = decoder.source(s.operands.at(3), result_bits);
  if (s.has("cc") || s.has("sat")) throw Unsupported{"carry or saturation"};
  if (is_wide) {
    i->run = wide_handler(type, is_mad);
  } else if (s.has("hi")) {
    i->run = is_mad ? ternary_of<kMadHigh>(type) : binary_of<kMulHigh>(type);
  } else {
    i->run = is_mad ? ternary_of<kMadLow>(type) : binary_of<kMulLow>(type);
  }
}

}  // namespace

bool decode_integer(Decoder& decoder, const ptx::Statement& s, Instruction* i) {
  const ptx::Type type = first_type(s);
  if (type.is_float() || type.kind == ptx::Type::Kind::kNone) return false;
  const std::string& opcode = s.parts[0];
  if (opcode == "mul" || opcode == "mad") {
    decode_product(decoder, s, i, type);
    return true;
  }
  if (opcode == "dp4a") {
    i->run = dp4a_handler(s);
    i->d = decoder.result(s.operands.at(0), 32);
    i->a = decoder.source(s.operands.at(1), 32);
    i->b = decoder.source(s.operands.at(2), 32);
    i->c = decoder.source(s.operands.at(3), 32);
    return true;
  }
  for (const Operation& operation : kOperations) {
    if (opcode != operation.opcode) continue;
    if (s.has("cc")) throw Unsupported{"carry"};
    i->run = operation.handler(type);
    i->d = decoder.result(s.operands.at(0), type.bits);
    i->a = decoder.source(s.operands.at(1), type.bits);
    if (operation.sources > 1) i->b = decoder.source(s.operands.at(2), type.bits);
    if (operation.sources > 2) i->c = decoder.source(s.operands.at(3), type.bits);
    if (s.has("sat")) {
      if (opcode != "add" || s.parts.back() != "s32") throw Unsupported{"saturation"};
      i->run = run_binary<int32_t, kAddSaturating>;
    }
    return true;
  }
  return false;
}

}  // namespace emulator
