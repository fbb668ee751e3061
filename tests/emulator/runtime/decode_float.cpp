// float32 and float64 arithmetic. Approximations are computed as exactly as the host can.
#include <cmath>

#include "runtime/decode.h"
#include "runtime/ops.h"

namespace emulator {
namespace {

constexpr auto kAdd = [](auto a, auto b) { return a + b; };
constexpr auto kSub = [](auto a, auto b) { return a - b; };
constexpr auto kMul = [](auto a, auto b) { return a * b; };
constexpr auto kDiv = [](auto a, auto b) { return a / b; };
// A number wins over NaN; -0 is smaller than +0.
constexpr auto kMin = []<class T>(T a, T b) {
  if (a != a) return b;
  if (a == b) return std::signbit(a) ? a : b;
  return b < a ? b : a;
};
constexpr auto kMax = []<class T>(T a, T b) {
  if (a != a) return b;
  if (a == b) return std::signbit(a) ? b : a;
  return b > a ? b : a;
};
constexpr auto kMinNan = [](auto a, auto b) { return a != a || b != b ? NAN : kMin(a, b); };
constexpr auto kMaxNan = [](auto a, auto b) { return a != a || b != b ? NAN : kMax(a, b); };
constexpr auto kFma = [](auto a, auto b, auto c) { return std::fma(a, b, c); };
constexpr auto kNeg = [](auto a) { return -a; };
constexpr auto kAbs = [](auto a) { return std::fabs(a); };
constexpr auto kReciprocal = [](auto a) { return 1 / a; };
constexpr auto kSqrt = [](auto a) { return std::sqrt(a); };
constexpr auto kRsqrt = []<class T>(T a) { return static_cast<T>(1 / std::sqrt(double{a})); };
constexpr auto kExp2 = [](auto a) { return std::exp2(a); };
constexpr auto kLog2 = [](auto a) { return std::log2(a); };
constexpr auto kSin = [](auto a) { return std::sin(a); };
constexpr auto kCos = [](auto a) { return std::cos(a); };
constexpr auto kTanh = [](auto a) { return std::tanh(a); };
constexpr auto kCopySign = [](auto a, auto b) { return std::copysign(b, a); };

enum Option { kFlush = 1, kSaturate = 2, kRelu = 4 };

template <class T>
T flush(T x, int32_t options) {
  return (options & kFlush) != 0 && std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(T{0}, x) : x;
}
template <class T>
T finish(T x, int32_t options) {
  x = flush(x, options);
  if ((options & kSaturate) != 0) return x > 0 ? std::min(x, T{1}) : T{0};
  return (options & kRelu) != 0 && x < 0 ? T{0} : x;
}

template <class T, auto F>
void run_unary(Execution& x, const Instruction& i) {
  const int32_t options = i.option;
  if (options == 0) return unary<T, T>(x, i, F);
  unary<T, T>(x, i, [=](T a) { return finish<T>(F(flush(a, options)), options); });
}
template <class T, auto F>
void run_binary(Execution& x, const Instruction& i) {
  const int32_t options = i.option;
  if (options == 0) return binary<T, T, T>(x, i, F);
  binary<T, T, T>(x, i, [=](T a, T b) {
    return finish<T>(static_cast<T>(F(flush(a, options), flush(b, options))), options);
  });
}
template <class T, auto F>
void run_ternary(Execution& x, const Instruction& i) {
  const int32_t options = i.option;
  if (options == 0) return ternary<T, T, T, T>(x, i, F);
  ternary<T, T, T, T>(x, i, [=](T a, T b, T c) {
    return finish<T>(F(flush(a, options), flush(b, options), flush(c, options)), options);
  });
}

// Directed rounding of float32: in float64, then to the neighbour on the wanted side.
enum Direction { kDown, kUp, kToZero };
float round_directed(double x, int direction) {
  const auto nearest = static_cast<float>(x);
  const double value = double{nearest};
  const bool is_down = direction == kDown || (direction == kToZero && x > 0);
  if (is_down && value > x) return std::nextafter(nearest, -INFINITY);
  if (!is_down && value < x) return std::nextafter(nearest, INFINITY);
  return nearest;
}
template <auto F>
void run_directed_binary(Execution& x, const Instruction& i) {
  const int direction = i.option;
  binary<float, float, float>(
      x, i, [=](double a, double b) { return round_directed(F(a, b), direction); });
}
void run_directed_fma(Execution& x, const Instruction& i) {
  const int direction = i.option;
  ternary<float, float, float, float>(
      x, i, [=](double a, double b, double c) { return round_directed(a * b + c, direction); });
}

struct Operation {
  const char* opcode;
  int sources;
  Handler single;
  Handler twice;
};
template <auto F>
constexpr Operation one(const char* opcode) {
  return {opcode, 1, run_unary<float, F>, run_unary<double, F>};
}
template <auto F>
constexpr Operation two(const char* opcode) {
  return {opcode, 2, run_binary<float, F>, run_binary<double, F>};
}
template <auto F>
constexpr Operation three(const char* opcode) {
  return {opcode, 3, run_ternary<float, F>, run_ternary<double, F>};
}
constexpr Operation kOperations[] = {
    two<kAdd>("add"),        two<kSub>("sub"),        two<kMul>("mul"),
    two<kDiv>("div"),        two<kMin>("min"),        two<kMax>("max"),
    two<kMinNan>("min.NaN"), two<kMaxNan>("max.NaN"), three<kFma>("fma"),
    three<kFma>("mad"),      one<kNeg>("neg"),        one<kAbs>("abs"),
    one<kReciprocal>("rcp"), one<kSqrt>("sqrt"),      one<kRsqrt>("rsqrt"),
    one<kExp2>("ex2"),       one<kLog2>("lg2"),       one<kSin>("sin"),
    one<kCos>("cos"),        one<kTanh>("tanh"),      two<kCopySign>("copysign"),
};

void run_testp(Execution& x, const Instruction& i) {
  const uint32_t* a = x.at<uint32_t>(i.a);
  const std::string& what = i.statement->parts[1];
  set_predicate(x, i.d, lanes_where([&](int lane) {
                  const float value = std::bit_cast<float>(a[lane]);
                  if (what == "finite") return std::isfinite(value);
                  if (what == "infinite") return std::isinf(value);
                  if (what == "number") return !std::isnan(value);
                  if (what == "notanumber") return std::isnan(value);
                  if (what == "normal") return std::isnormal(value);
                  return std::fpclassify(value) == FP_SUBNORMAL;
                }));
}

void choose_directed(const ptx::Statement& s, ptx::Type type, Instruction* i) {
  const std::string& opcode = s.parts[0];
  i->run = opcode == "fma"   ? run_directed_fma
           : opcode == "add" ? run_directed_binary<kAdd>
           : opcode == "sub" ? run_directed_binary<kSub>
           : opcode == "mul" ? run_directed_binary<kMul>
                             : nullptr;
  if (i->run == nullptr || type.bits != 32 || i->option != 0) throw Unsupported{"rounding"};
  i->option = s.has("rm") ? kDown : s.has("rp") ? kUp : kToZero;
}

}  // namespace

bool decode_float(Decoder& decoder, const ptx::Statement& s, Instruction* i) {
  const ptx::Type type = first_type(s);
  if (type.kind != ptx::Type::Kind::kFloat || type.is_packed || type.bits == 16) return false;
  if (s.parts[0] == "testp" && type.bits == 32) {
    i->run = run_testp;
    i->d = decoder.result(s.operands.at(0), 1);
    i->a = decoder.source(s.operands.at(1), 32);
    return true;
  }
  const std::string opcode = s.parts[0] + (s.has("NaN") ? ".NaN" : "");
  for (const Operation& operation : kOperations) {
    if (opcode != operation.opcode) continue;
    i->run = type.bits == 64 ? operation.twice : operation.single;
    i->option =
        (s.has("ftz") ? kFlush : 0) | (s.has("sat") ? kSaturate : 0) | (s.has("relu") ? kRelu : 0);
    if (s.has("rz") || s.has("rm") || s.has("rp")) choose_directed(s, type, i);
    i->d = decoder.result(s.operands.at(0), type.bits);
    i->a = decoder.source(s.operands.at(1), type.bits);
    if (operation.sources > 1) i->b = decoder.source(s.operands.at(2), type.bits);
    if (operation.sources > 2) i->c = decoder.source(s.operands.at(3), type.bits);
    return true;
  }
  return false;
}

}  // namespace emulator
