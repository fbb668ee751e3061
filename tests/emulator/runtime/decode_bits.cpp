// Bits: and, or, xor, not, shifts, lop3, prmt, bit fields, counts; also of predicates.
#include <algorithm>

#include "runtime/decode.h"
#include "runtime/ops.h"

namespace emulator {
namespace {

constexpr auto kAnd = [](auto a, auto b) { return a & b; };
constexpr auto kOr = [](auto a, auto b) { return a | b; };
constexpr auto kXor = [](auto a, auto b) { return a ^ b; };
constexpr auto kNot = [](auto a) { return ~a; };
constexpr auto kCnot = [](auto a) { return a == 0 ? 1 : 0; };
constexpr auto kPopulation = [](auto a) { return std::popcount(a); };
constexpr auto kLeadingZeros = [](auto a) { return std::countl_zero(a); };
constexpr auto kReverse = []<class T>(T a) {
  T result = 0;
  for (int bit = 0; bit < static_cast<int>(8 * sizeof(T)); ++bit) {
    result = static_cast<T>(result << 1 | (a >> bit & 1));
  }
  return result;
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
void run_count(Execution& x, const Instruction& i) {
  unary<uint32_t, T>(x, i, F);
}

template <auto F>
void run_predicate_binary(Execution& x, const Instruction& i) {
  const LaneMask b = x.predicate(i.b);
  set_predicate(x, i.d, F(x.predicate(i.a), i.is_c_negated ? ~b : b));
}
void run_predicate_not(Execution& x, const Instruction& i) {
  set_predicate(x, i.d, ~x.predicate(i.a));
}

// Shift amounts are 32 bits wide; those beyond the width shift everything out.
template <class T>
void run_shl(Execution& x, const Instruction& i) {
  binary<T, T, uint32_t>(
      x, i, [](T a, uint32_t n) { return n >= 8 * sizeof(T) ? T{0} : static_cast<T>(a << n); });
}
template <class T>
void run_shr(Execution& x, const Instruction& i) {
  binary<T, T, uint32_t>(x, i, [](T a, uint32_t n) {
    if (n >= 8 * sizeof(T)) return a < 0 ? static_cast<T>(~T{0}) : T{0};
    return static_cast<T>(a >> n);
  });
}

// shf: 32 bits of the pair b:a; option holds left (1) and clamp (2).
void run_funnel(Execution& x, const Instruction& i) {
  const bool is_left = (i.option & 1) != 0;
  const bool is_clamped = (i.option & 2) != 0;
  ternary<uint32_t, uint32_t, uint32_t, uint32_t>(x, i, [=](uint32_t a, uint32_t b, uint32_t n) {
    n = is_clamped ? std::min(n, 32u) : n & 31;
    const uint64_t pair = uint64_t{b} << 32 | a;
    return static_cast<uint32_t>(is_left ? pair << n >> 32 : pair >> n);
  });
}

void run_lop3(Execution& x, const Instruction& i) {
  const auto table = static_cast<uint32_t>(i.option);
  ternary<uint32_t, uint32_t, uint32_t, uint32_t>(x, i, [=](uint32_t a, uint32_t b, uint32_t c) {
    uint32_t result = 0;
    for (uint32_t row = 0; row < 8; ++row) {
      const uint32_t term = (row & 4 ? a : ~a) & (row & 2 ? b : ~b) & (row & 1 ? c : ~c);
      result |= table >> row & 1 ? term : 0;
    }
    return result;
  });
}

void run_prmt(Execution& x, const Instruction& i) {
  ternary<uint32_t, uint32_t, uint32_t, uint32_t>(x, i, [](uint32_t a, uint32_t b, uint32_t how) {
    const uint64_t bytes = uint64_t{b} << 32 | a;
    uint32_t result = 0;
    for (int place = 0; place < 4; ++place) {
      const uint32_t selector = how >> 4 * place & 15;
      uint32_t byte = static_cast<uint32_t>(bytes >> 8 * (selector & 7)) & 0xFF;
      if ((selector & 8) != 0) byte = (byte & 0x80) != 0 ? 0xFF : 0;
      result |= byte << 8 * place;
    }
    return result;
  });
}

template <class T>
void run_bfind(Execution& x, const Instruction& i) {
  using U = std::make_unsigned_t<T>;
  const bool is_shift = i.option != 0;
  unary<uint32_t, T>(x, i, [=](T a) {
    const U bits = static_cast<U>(a < 0 ? ~a : a);
    if (bits == 0) return ~0u;
    const auto zeros = static_cast<uint32_t>(std::countl_zero(bits));
    return is_shift ? zeros : static_cast<uint32_t>(8 * sizeof(T)) - 1 - zeros;
  });
}

// bfe: length bits from a position on; the sign of a signed field is its highest bit.
template <class T>
void run_bfe(Execution& x, const Instruction& i) {
  ternary<T, T, uint32_t, uint32_t>(x, i, [](T a, uint32_t position, uint32_t length) {
    constexpr uint32_t kBits = 8 * sizeof(T);
    position &= 0xFF;
    length &= 0xFF;
    if (length == 0) return T{0};
    const uint32_t top = std::min(position + length, kBits) - 1;
    const T sign = std::is_signed_v<T> && (a >> top & 1) != 0 ? static_cast<T>(~T{0}) : T{0};
    if (position >= kBits) return sign;
    const auto shifted = static_cast<T>(a >> position);
    if (length >= kBits) return shifted;
    const auto mask = static_cast<T>((T{1} << length) - 1);
    return static_cast<T>((shifted & mask) | (sign & ~mask));
  });
}

// bfi: a's low bits replace a field of b; sources[0] and [1] are position and length.
template <class T>
void run_bfi(Execution& x, const Instruction& i) {
  const uint32_t* positions = x.at<uint32_t>(i.sources[0]);
  const uint32_t* lengths = x.at<uint32_t>(i.sources[1]);
  const Storage<T>* a = x.at<Storage<T>>(i.a);
  const Storage<T>* b = x.at<Storage<T>>(i.b);
  each_lane<Storage<T>>(x, i.d, [&](int lane) {
    constexpr uint32_t kBits = 8 * sizeof(T);
    const uint32_t position = positions[lane] & 0xFF;
    const uint32_t length = lengths[lane] & 0xFF;
    if (position >= kBits) return b[lane];
    const T ones = length >= kBits ? ~T{0} : static_cast<T>((T{1} << length) - 1);
    const auto mask = static_cast<T>(ones << position);
    return static_cast<T>((b[lane] & ~mask) | (static_cast<T>(a[lane] << position) & mask));
  });
}

template <class F>
Handler for_bits(ptx::Type type, F f) {
  switch (type.bits) {
    case 16:
      return f.template operator()<uint16_t>();
    case 32:
      return f.template operator()<uint32_t>();
    case 64:
      return f.template operator()<uint64_t>();
    default:
      throw Unsupported{"width"};
  }
}

template <auto F>
Handler logic(ptx::Type type) {
  if (type.bits == 1) return run_predicate_binary<F>;
  return for_bits(type, []<class T>() -> Handler { return run_binary<T, F>; });
}

Handler shift_right(ptx::Type type) {
  if (type.kind != ptx::Type::Kind::kSigned) {
    return for_bits(type, []<class T>() -> Handler { return run_shr<T>; });
  }
  return for_bits(type, []<class T>() -> Handler { return run_shr<std::make_signed_t<T>>; });
}

bool decode_logic(Decoder& decoder, const ptx::Statement& s, Instruction* i, ptx::Type type) {
  const std::string& opcode = s.parts[0];
  if (opcode == "not" || opcode == "cnot") {
    i->run = type.bits == 1 ? run_predicate_not
             : opcode == "not"
                 ? for_bits(type, []<class T>() -> Handler { return run_unary<T, kNot>; })
                 : for_bits(type, []<class T>() -> Handler { return run_unary<T, kCnot>; });
    i->d = decoder.result(s.operands.at(0), type.bits);
    i->a = decoder.source(s.operands.at(1), type.bits);
    return true;
  }
  if (opcode != "and" && opcode != "or" && opcode != "xor") return false;
  i->run = opcode == "and"  ? logic<kAnd>(type)
           : opcode == "or" ? logic<kOr>(type)
                            : logic<kXor>(type);
  i->d = decoder.result(s.operands.at(0), type.bits);
  i->a = decoder.source(s.operands.at(1), type.bits);
  i->b = decoder.source(s.operands.at(2), type.bits);
  i->is_c_negated = s.operands.at(2).is_negated;
  if (s.operands.at(1).is_negated) throw Unsupported{"negated first operand"};
  return true;
}

bool decode_shift(Decoder& decoder, const ptx::Statement& s, Instruction* i, ptx::Type type) {
  const std::string& opcode = s.parts[0];
  if (opcode == "shl" || opcode == "shr") {
    i->run = opcode == "shr" ? shift_right(type)
                             : for_bits(type, []<class T>() -> Handler { return run_shl<T>; });
    i->d = decoder.result(s.operands.at(0), type.bits);
    i->a = decoder.source(s.operands.at(1), type.bits);
    i->b = decoder.source(s.operands.at(2), 32);
    return true;
  }
  if (opcode != "shf" && opcode != "prmt" && opcode != "lop3") return false;
  if (opcode == "shf") {
    i->run = run_funnel;
    i->option = (s.has("l") ? 1 : 0) + (s.has("clamp") ? 2 : 0);
  } else if (opcode == "prmt") {
    if (s.parts.size() != 2) throw Unsupported{"mode of prmt"};
    i->run = run_prmt;
  } else {
    if (s.operands.size() != 5) throw Unsupported{"lop3 with a predicate"};
    i->run = run_lop3;
    i->option = static_cast<int32_t>(decoder.immediate(s.operands[4]));
  }
  i->d = decoder.result(s.operands.at(0), 32);
  i->a = decoder.source(s.operands.at(1), 32);
  i->b = decoder.source(s.operands.at(2), 32);
  i->c = decoder.source(s.operands.at(3), 32);
  return true;
}

bool decode_field(Decoder& decoder, const ptx::Statement& s, Instruction* i, ptx::Type type) {
  const bool is_wide = type.bits == 64;
  const bool is_signed = type.kind == ptx::Type::Kind::kSigned;
  if (s.parts[0] == "bfe") {
    i->run = is_signed ? (is_wide ? run_bfe<int64_t> : run_bfe<int32_t>)
                       : (is_wide ? run_bfe<uint64_t> : run_bfe<uint32_t>);
    i->d = decoder.result(s.operands.at(0), type.bits);
    i->a = decoder.source(s.operands.at(1), type.bits);
    i->b = decoder.source(s.operands.at(2), 32);
    i->c = decoder.source(s.operands.at(3), 32);
    return true;
  }
  if (s.parts[0] != "bfi") return false;
  i->run = is_wide ? run_bfi<uint64_t> : run_bfi<uint32_t>;
  i->d = decoder.result(s.operands.at(0), type.bits);
  i->a = decoder.source(s.operands.at(1), type.bits);
  i->b = decoder.source(s.operands.at(2), type.bits);
  i->sources = {decoder.source(s.operands.at(3), 32), decoder.source(s.operands.at(4), 32)};
  return true;
}

bool decode_count(Decoder& decoder, const ptx::Statement& s, Instruction* i, ptx::Type type) {
  const std::string& opcode = s.parts[0];
  const bool is_wide = type.bits == 64;
  const bool is_signed = type.kind == ptx::Type::Kind::kSigned;
  int result_bits = 32;
  if (opcode == "popc") {
    i->run = is_wide ? run_count<uint64_t, kPopulation> : run_count<uint32_t, kPopulation>;
  } else if (opcode == "clz") {
    i->run = is_wide ? run_count<uint64_t, kLeadingZeros> : run_count<uint32_t, kLeadingZeros>;
  } else if (opcode == "brev") {
    i->run = is_wide ? run_unary<uint64_t, kReverse> : run_unary<uint32_t, kReverse>;
    result_bits = type.bits;
  } else if (opcode == "bfind") {
    i->option = s.has("shiftamt") ? 1 : 0;
    i->run = is_signed ? (is_wide ? run_bfind<int64_t> : run_bfind<int32_t>)
                       : (is_wide ? run_bfind<uint64_t> : run_bfind<uint32_t>);
  } else {
    return false;
  }
  i->d = decoder.result(s.operands.at(0), result_bits);
  i->a = decoder.source(s.operands.at(1), type.bits);
  return true;
}

}  // namespace

bool decode_bits(Decoder& decoder, const ptx::Statement& s, Instruction* i) {
  const ptx::Type type = first_type(s);
  return decode_logic(decoder, s, i, type) || decode_shift(decoder, s, i, type) ||
         decode_field(decoder, s, i, type) || decode_count(decoder, s, i, type);
}

}  // namespace emulator
