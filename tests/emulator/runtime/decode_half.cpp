// float16 and bfloat16 arithmetic, one value or two packed in 32 bits; rounded once, to even.
#include <cmath>

#include "runtime/decode.h"
#include "runtime/half.h"
#include "runtime/ops.h"

namespace emulator {
namespace {

constexpr auto kAdd = [](double a, double b, double) { return a + b; };
constexpr auto kSub = [](double a, double b, double) { return a - b; };
constexpr auto kMul = [](double a, double b, double) { return a * b; };
constexpr auto kFma = [](double a, double b, double c) { return a * b + c; };
constexpr auto kFmaRelu = [](double a, double b, double c) {
  const double r = a * b + c;
  return r < 0 ? 0.0 : r;
};
constexpr auto kMin = [](double a, double b, double) {
  return a == b ? (std::signbit(a) ? a : b) : std::fmin(a, b);
};
constexpr auto kMax = [](double a, double b, double) {
  return a == b ? (std::signbit(a) ? b : a) : std::fmax(a, b);
};
constexpr auto kMinNan = [](double a, double b, double) {
  return a != a || b != b ? NAN : kMin(a, b, 0);
};
constexpr auto kMaxNan = [](double a, double b, double) {
  return a != a || b != b ? NAN : kMax(a, b, 0);
};
constexpr auto kExp2 = [](double a, double, double) { return std::exp2(a); };
constexpr auto kTanh = [](double a, double, double) { return std::tanh(a); };

template <class T>
uint16_t round_bits(double x) {
  if constexpr (std::is_same_v<T, Half>) {
    return to_half(x).bits;
  } else {
    return to_bfloat(x).bits;
  }
}

template <class T, bool kPacked, auto F>
void run(Execution& x, const Instruction& i) {
  const uint32_t* a = x.at<uint32_t>(i.a);
  const uint32_t* b = x.at<uint32_t>(i.b);
  const uint32_t* c = x.at<uint32_t>(i.c);
  auto one = [&](int lane, int shift) {
    auto value = [&](const uint32_t* source) {
      return double{to_float(T{static_cast<uint16_t>(source[lane] >> shift)})};
    };
    return uint32_t{round_bits<T>(F(value(a), value(b), value(c)))} << shift;
  };
  each_lane<uint32_t>(
      x, i.d, [&](int lane) { return kPacked ? one(lane, 0) | one(lane, 16) : one(lane, 0); });
}

// Signs are bits: NaN payloads stay.
template <bool kPacked, bool kNegates>
void run_sign(Execution& x, const Instruction& i) {
  constexpr uint32_t kSigns = kPacked ? 0x80008000u : 0x8000u;
  unary<uint32_t, uint32_t>(x, i, [](uint32_t a) { return kNegates ? a ^ kSigns : a & ~kSigns; });
}

struct Operation {
  const char* opcode;
  int sources;
  Handler handlers[4];  // half, packed halves, bfloat, packed bfloats
};
template <auto F>
constexpr Operation operation(const char* opcode, int sources) {
  return {opcode,
          sources,
          {run<Half, false, F>, run<Half, true, F>, run<BFloat, false, F>, run<BFloat, true, F>}};
}
template <bool kNegates>
constexpr Operation sign(const char* opcode) {
  return {opcode,
          1,
          {run_sign<false, kNegates>, run_sign<true, kNegates>, run_sign<false, kNegates>,
           run_sign<true, kNegates>}};
}
constexpr Operation kOperations[] = {
    operation<kAdd>("add", 2),
    operation<kSub>("sub", 2),
    operation<kMul>("mul", 2),
    operation<kFma>("fma", 3),
    operation<kFmaRelu>("fma.relu", 3),
    operation<kMin>("min", 2),
    operation<kMax>("max", 2),
    operation<kMinNan>("min.NaN", 2),
    operation<kMaxNan>("max.NaN", 2),
    operation<kExp2>("ex2", 1),
    operation<kTanh>("tanh", 1),
    sign<true>("neg"),
    sign<false>("abs"),
};

}  // namespace

bool decode_half(Decoder& decoder, const ptx::Statement& s, Instruction* i) {
  const ptx::Type type = first_type(s);
  if (!type.is_float() || (type.bits != 16 && !type.is_packed)) return false;
  const std::string opcode =
      s.parts[0] + (s.has("NaN") ? ".NaN" : "") + (s.has("relu") ? ".relu" : "");
  for (const Operation& operation : kOperations) {
    if (opcode != operation.opcode) continue;
    if (s.has("sat") || s.has("ftz")) throw Unsupported{"saturation or flushing"};
    const bool is_bfloat = type.kind == ptx::Type::Kind::kBFloat;
    i->run = operation.handlers[2 * is_bfloat + type.is_packed];
    i->d = decoder.result(s.operands.at(0), type.bits);
    i->a = i->b = i->c = decoder.source(s.operands.at(1), type.bits);
    if (operation.sources > 1) i->b = decoder.source(s.operands.at(2), type.bits);
    if (operation.sources > 2) i->c = decoder.source(s.operands.at(3), type.bits);
    return true;
  }
  return false;
}

}  // namespace emulator
