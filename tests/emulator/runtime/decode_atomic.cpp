// atom and red: the lanes of a warp take their turns in a random order.
#include <algorithm>
#include <cstring>

#include "runtime/access.h"
#include "runtime/decode.h"
#include "runtime/ops.h"

namespace emulator {
namespace {

constexpr auto kAdd = []<class T>(T old, T b, T) {
  if constexpr (std::is_floating_point_v<T>) {
    return old + b;
  } else {
    using U = std::make_unsigned_t<T>;
    return static_cast<T>(static_cast<U>(old) + static_cast<U>(b));
  }
};
constexpr auto kMin = [](auto old, auto b, auto) { return std::min(old, b); };
constexpr auto kMax = [](auto old, auto b, auto) { return std::max(old, b); };
constexpr auto kAnd = [](auto old, auto b, auto) { return old & b; };
constexpr auto kOr = [](auto old, auto b, auto) { return old | b; };
constexpr auto kXor = [](auto old, auto b, auto) { return old ^ b; };
constexpr auto kExchange = [](auto, auto b, auto) { return b; };
constexpr auto kCompareAndSwap = [](auto old, auto b, auto c) { return old == b ? c : old; };
constexpr auto kIncrement = []<class T>(T old, T b, T) {
  return old >= b ? T{0} : static_cast<T>(old + 1);
};
constexpr auto kDecrement = []<class T>(T old, T b, T) {
  return old == 0 || old > b ? b : static_cast<T>(old - 1);
};

template <class T, Space kSpace, auto F>
void run_atomic(Execution& x, const Instruction& i) {
  const Ordering ordering = Ordering::decode(i.option);
  const Addresses addresses(x, i);
  const Storage<T>* b = x.at<Storage<T>>(i.b);
  const Storage<T>* c = x.at<Storage<T>>(i.c);
  const uint32_t rotation = x.machine.random() % kLanes;
  for_each_lane(std::rotr(x.mask, static_cast<int>(rotation)), [&](int turn) {
    const int lane = (turn + static_cast<int>(rotation)) % kLanes;
    Accessor accessor(x, AccessKind::kWrite, Strength::kStrong);
    char* place = accessor.resolve<kSpace>(lane, addresses.lane[lane], sizeof(T));
    order_read(x, lane, place, kSpace, ordering);
    order_write(x, lane, place, kSpace, ordering, true);
    T old;
    std::memcpy(&old, place, sizeof(T));
    const T updated = F(old, unpack<T>(b[lane]), unpack<T>(c[lane]));
    std::memcpy(place, &updated, sizeof(T));
    if (i.has_d) x.at<Storage<T>>(i.d)[lane] = pack<T>(old);
  });
  x.yield();
}

template <class T, auto F>
Handler in_space(bool is_shared) {
  return is_shared ? run_atomic<T, Space::kShared, F> : run_atomic<T, Space::kGeneric, F>;
}

template <class T>
Handler operation(std::string_view name, bool is_shared) {
  if (name == "add") return in_space<T, kAdd>(is_shared);
  if (name == "exch") return in_space<T, kExchange>(is_shared);
  if constexpr (!std::is_floating_point_v<T>) {
    if (name == "min") return in_space<T, kMin>(is_shared);
    if (name == "max") return in_space<T, kMax>(is_shared);
    if (name == "and") return in_space<T, kAnd>(is_shared);
    if (name == "or") return in_space<T, kOr>(is_shared);
    if (name == "xor") return in_space<T, kXor>(is_shared);
    if (name == "cas") return in_space<T, kCompareAndSwap>(is_shared);
    if constexpr (std::is_same_v<T, uint32_t>) {
      if (name == "inc") return in_space<T, kIncrement>(is_shared);
      if (name == "dec") return in_space<T, kDecrement>(is_shared);
    }
  }
  throw Unsupported{"operation"};
}

Handler operation(std::string_view name, bool is_shared, ptx::Type type) {
  using Kind = ptx::Type::Kind;
  if (type.is_packed || (type.bits != 32 && type.bits != 64) || type.kind == Kind::kBFloat) {
    throw Unsupported{"type"};
  }
  const bool is_wide = type.bits == 64;
  if (type.kind == Kind::kFloat) {
    return is_wide ? operation<double>(name, is_shared) : operation<float>(name, is_shared);
  }
  if (type.kind == Kind::kSigned) {
    return is_wide ? operation<int64_t>(name, is_shared) : operation<int32_t>(name, is_shared);
  }
  return is_wide ? operation<uint64_t>(name, is_shared) : operation<uint32_t>(name, is_shared);
}

std::string_view operation_name(const ptx::Statement& s) {
  constexpr std::string_view kNames[] = {"add", "exch", "min", "max", "and",
                                         "or",  "xor",  "cas", "inc", "dec"};
  for (const std::string_view name : kNames) {
    if (s.has(name)) return name;
  }
  throw Unsupported{"operation"};
}

}  // namespace

bool decode_atomic(Decoder& decoder, const ptx::Statement& s, Instruction* i) {
  const bool has_result = s.parts[0] == "atom";
  if (!has_result && s.parts[0] != "red") return false;
  if (s.has("async")) throw Unsupported{"red.async"};
  const ptx::Type type = first_type(s);
  const bool is_shared = s.has("shared") || s.has("shared::cta");
  i->run = operation(operation_name(s), is_shared, type);
  i->option = Ordering::of(s, {.is_strong = true}).encode();
  size_t operand = 0;
  if (has_result) decoder.results(s.operands.at(operand++), type.bits);
  decoder.address(s.operands.at(operand++));
  i->b = i->c = decoder.source(s.operands.at(operand++), type.bits);
  if (s.operands.size() > operand) i->c = decoder.source(s.operands[operand], type.bits);
  return true;
}

}  // namespace emulator
