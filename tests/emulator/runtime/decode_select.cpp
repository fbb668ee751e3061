// Comparisons and choices: setp, set, selp; and mov.
#include <cmath>

#include "runtime/decode.h"
#include "runtime/half.h"
#include "runtime/ops.h"

namespace emulator {
namespace {

constexpr auto kEq = [](auto a, auto b) { return a == b; };
constexpr auto kNe = [](auto a, auto b) { return a == a && b == b && a != b; };
constexpr auto kLt = [](auto a, auto b) { return a < b; };
constexpr auto kLe = [](auto a, auto b) { return a <= b; };
constexpr auto kGt = [](auto a, auto b) { return a > b; };
constexpr auto kGe = [](auto a, auto b) { return a >= b; };
// True also when one is NaN.
constexpr auto kEqu = [](auto a, auto b) { return !(a < b || a > b); };
constexpr auto kNeu = [](auto a, auto b) { return a != b; };
constexpr auto kLtu = [](auto a, auto b) { return !(a >= b); };
constexpr auto kLeu = [](auto a, auto b) { return !(a > b); };
constexpr auto kGtu = [](auto a, auto b) { return !(a <= b); };
constexpr auto kGeu = [](auto a, auto b) { return !(a < b); };
constexpr auto kNum = [](auto a, auto b) { return a == a && b == b; };
constexpr auto kNan = [](auto a, auto b) { return a != a || b != b; };

enum Combination { kNone, kAnd, kOr, kXor };

template <class T, auto F>
LaneMask compare(const Execution& x, const Instruction& i) {
  if constexpr (std::is_same_v<T, Half> || std::is_same_v<T, BFloat>) {
    const uint32_t* a = x.at<uint32_t>(i.a);
    const uint32_t* b = x.at<uint32_t>(i.b);
    return lanes_where([&](int lane) {
      return F(to_float(T{static_cast<uint16_t>(a[lane])}),
               to_float(T{static_cast<uint16_t>(b[lane])}));
    });
  } else {
    const Storage<T>* a = x.at<Storage<T>>(i.a);
    const Storage<T>* b = x.at<Storage<T>>(i.b);
    return lanes_where([&](int lane) { return F(unpack<T>(a[lane]), unpack<T>(b[lane])); });
  }
}

LaneMask combine(const Execution& x, const Instruction& i, LaneMask holds) {
  if (i.option == kNone) return holds;
  const LaneMask c = i.is_c_negated ? ~x.predicate(i.c) : x.predicate(i.c);
  return i.option == kAnd ? holds & c : i.option == kOr ? holds | c : holds ^ c;
}

template <class T, auto F>
void run_setp(Execution& x, const Instruction& i) {
  const LaneMask holds = compare<T, F>(x, i);
  const LaneMask result = combine(x, i, holds);
  const LaneMask opposite = combine(x, i, ~holds);
  if (i.has_d) set_predicate(x, i.d, result);
  if (i.has_p) set_predicate(x, i.p, opposite);
}

// set: 1.0 or all ones; sources[0] holds the value of true.
template <class T, auto F>
void run_set(Execution& x, const Instruction& i) {
  const LaneMask holds = combine(x, i, compare<T, F>(x, i));
  const uint32_t* one = x.at<uint32_t>(i.sources[0]);
  each_lane<uint32_t>(x, i.d, [&](int lane) { return (holds >> lane & 1) != 0 ? one[lane] : 0u; });
}

template <class T>
void run_selp(Execution& x, const Instruction& i) {
  const LaneMask c = i.is_c_negated ? ~x.predicate(i.c) : x.predicate(i.c);
  const T* a = x.at<T>(i.a);
  const T* b = x.at<T>(i.b);
  each_lane<T>(x, i.d, [&](int lane) { return (c >> lane & 1) != 0 ? a[lane] : b[lane]; });
}

// ---- mov ---------------------------------------------------------------------------------------

template <class T>
void run_mov(Execution& x, const Instruction& i) {
  const T* a = x.at<T>(i.a);
  each_lane<T>(x, i.d, [&](int lane) { return a[lane]; });
}
void run_mov_predicate(Execution& x, const Instruction& i) {
  set_predicate(x, i.d, x.predicate(i.a));
}
void run_read_clock(Execution& x, const Instruction& i) {
  const uint64_t clock = x.machine.instructions;
  if (i.option == 64) {
    each_lane<uint64_t>(x, i.d, [&](int) { return clock; });
  } else {
    each_lane<uint32_t>(x, i.d, [&](int) { return static_cast<uint32_t>(clock); });
  }
}

// mov.b32 d, {lo, hi} and mov.b64; option: bits of one part.
template <class Whole, class Part>
void run_join(Execution& x, const Instruction& i) {
  each_lane<Whole>(x, i.d, [&](int lane) {
    Whole value = 0;
    for (size_t part = 0; part < i.sources.size(); ++part) {
      const auto bits = Whole{static_cast<Part>(x.at<uint32_t>(i.sources[part])[lane])};
      value = static_cast<Whole>(value | bits << (part * 8 * sizeof(Part)));
    }
    return value;
  });
}
template <class Whole, class Part>
void run_split(Execution& x, const Instruction& i) {
  const Whole* a = x.at<Whole>(i.a);
  for (int part = 0; part < static_cast<int>(i.results.size()); ++part) {
    if (((i.option >> part) & 1) != 0) continue;  // "_"
    const size_t shift = static_cast<size_t>(part) * 8 * sizeof(Part);
    each_lane<uint32_t>(x, i.results[static_cast<size_t>(part)],
                        [&](int lane) { return uint32_t{static_cast<Part>(a[lane] >> shift)}; });
  }
}

void decode_vector_mov(Decoder& decoder, const ptx::Statement& s, Instruction* i, int bits) {
  const bool is_split = s.operands.at(0).kind == ptx::Operand::Kind::kVector;
  const auto& elements = s.operands.at(is_split ? 0 : 1).elements;
  const int part_bits = bits / static_cast<int>(elements.size());
  if (is_split) {
    i->a = decoder.source(s.operands.at(1), bits);
    for (size_t e = 0; e < elements.size(); ++e) {
      const bool is_sink = elements[e].kind == ptx::Operand::Kind::kSink;
      if (is_sink) i->option |= 1 << e;
      i->results.push_back(is_sink ? Slot{} : decoder.result(elements[e], part_bits));
    }
  } else {
    decoder.vector_sources(s.operands.at(1), part_bits, elements.size());
    i->d = decoder.result(s.operands.at(0), bits);
  }
  i->copies = true;
  if (bits == 64 && part_bits == 32) {
    i->run = is_split ? run_split<uint64_t, uint32_t> : run_join<uint64_t, uint32_t>;
  } else if (bits == 64 && part_bits == 16) {
    i->run = is_split ? run_split<uint64_t, uint16_t> : run_join<uint64_t, uint16_t>;
  } else if (bits == 32 && part_bits == 16) {
    i->run = is_split ? run_split<uint32_t, uint16_t> : run_join<uint32_t, uint16_t>;
  } else if (bits == 32 && part_bits == 8) {
    i->run = is_split ? run_split<uint32_t, uint8_t> : run_join<uint32_t, uint8_t>;
  } else {
    throw Unsupported{"parts of mov"};
  }
}

void decode_mov(Decoder& decoder, const ptx::Statement& s, Instruction* i) {
  const int bits = first_type(s).bits;
  for (const ptx::Operand& operand : {s.operands.at(0), s.operands.at(1)}) {
    if (operand.kind != ptx::Operand::Kind::kVector) continue;
    decode_vector_mov(decoder, s, i, bits);
    return;
  }
  i->d = decoder.result(s.operands.at(0), bits);
  const std::string& name = s.operands.at(1).name;
  if (name == "%clock" || name == "%clock64" || name == "%globaltimer") {
    i->run = run_read_clock;
    i->option = bits;
    return;
  }
  i->a = decoder.source(s.operands.at(1), bits);
  i->copies = true;
  i->run = bits == 1 ? run_mov_predicate : bits == 64 ? run_mov<uint64_t> : run_mov<uint32_t>;
}

// ---- choice of a comparison --------------------------------------------------------------------

template <class T, bool kIsSet>
Handler comparison(std::string_view name) {
  auto choose = [&]<auto F>() -> Handler { return kIsSet ? run_set<T, F> : run_setp<T, F>; };
  if (name == "eq") return choose.template operator()<kEq>();
  if (name == "ne") return choose.template operator()<kNe>();
  if (name == "lt" || name == "lo") return choose.template operator()<kLt>();
  if (name == "le" || name == "ls") return choose.template operator()<kLe>();
  if (name == "gt" || name == "hi") return choose.template operator()<kGt>();
  if (name == "ge" || name == "hs") return choose.template operator()<kGe>();
  if (name == "equ") return choose.template operator()<kEqu>();
  if (name == "neu") return choose.template operator()<kNeu>();
  if (name == "ltu") return choose.template operator()<kLtu>();
  if (name == "leu") return choose.template operator()<kLeu>();
  if (name == "gtu") return choose.template operator()<kGtu>();
  if (name == "geu") return choose.template operator()<kGeu>();
  if (name == "num") return choose.template operator()<kNum>();
  if (name == "nan") return choose.template operator()<kNan>();
  throw Unsupported{"comparison " + std::string(name)};
}

template <bool kIsSet>
Handler comparison(std::string_view name, ptx::Type type) {
  using Kind = ptx::Type::Kind;
  if (type.is_packed) throw Unsupported{"comparison of packed values"};
  if (type.kind == Kind::kBFloat) return comparison<BFloat, kIsSet>(name);
  if (type.kind == Kind::kFloat) {
    if (type.bits == 16) return comparison<Half, kIsSet>(name);
    return type.bits == 32 ? comparison<float, kIsSet>(name) : comparison<double, kIsSet>(name);
  }
  if (type.kind == Kind::kSigned) {
    if (type.bits == 16) return comparison<int16_t, kIsSet>(name);
    return type.bits == 32 ? comparison<int32_t, kIsSet>(name) : comparison<int64_t, kIsSet>(name);
  }
  if (type.bits == 16) return comparison<uint16_t, kIsSet>(name);
  return type.bits == 32 ? comparison<uint32_t, kIsSet>(name) : comparison<uint64_t, kIsSet>(name);
}

void decode_comparison(Decoder& decoder, const ptx::Statement& s, Instruction* i) {
  const bool is_set = s.parts[0] == "set";
  const ptx::Type result = is_set ? first_type(s) : ptx::Type{ptx::Type::Kind::kPredicate, 1};
  const ptx::Type type = is_set ? second_type(s) : first_type(s);
  if (s.has("ftz")) throw Unsupported{"flushing"};
  i->run = is_set ? comparison<true>(s.parts.at(1), type) : comparison<false>(s.parts.at(1), type);
  decoder.results(s.operands.at(0), result.bits);
  i->a = decoder.source(s.operands.at(1), type.bits);
  i->b = decoder.source(s.operands.at(2), type.bits);
  if (s.operands.size() > 3) {
    i->option = s.has("and") ? kAnd : s.has("or") ? kOr : kXor;
    i->c = decoder.predicate(s.operands[3]);
    i->is_c_negated = s.operands[3].is_negated;
  }
  if (!is_set) return;
  if (result.bits != 32 || result.is_packed) throw Unsupported{"result of set"};
  const uint32_t one = result.is_float() ? std::bit_cast<uint32_t>(1.0f) : ~0u;
  i->sources.push_back(decoder.constant(one, 32));
}

}  // namespace

bool decode_select(Decoder& decoder, const ptx::Statement& s, Instruction* i) {
  const std::string& opcode = s.parts[0];
  if (opcode == "mov") {
    decode_mov(decoder, s, i);
  } else if (opcode == "setp" || opcode == "set") {
    decode_comparison(decoder, s, i);
  } else if (opcode == "selp") {
    const int bits = first_type(s).bits;
    i->run = bits == 64 ? run_selp<uint64_t> : run_selp<uint32_t>;
    i->d = decoder.result(s.operands.at(0), bits);
    i->a = decoder.source(s.operands.at(1), bits);
    i->b = decoder.source(s.operands.at(2), bits);
    i->c = decoder.predicate(s.operands.at(3));
    i->is_c_negated = s.operands.at(3).is_negated;
    i->copies = true;
  } else {
    return false;
  }
  return true;
}

}  // namespace emulator
