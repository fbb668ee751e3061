// Loads and stores of global, shared and local memory; cvta, isspacep, fences, prefetches.
#include <cstring>

#include "runtime/access.h"
#include "runtime/decode.h"
#include "runtime/ops.h"

namespace emulator {
namespace {

constexpr uint32_t kPreemption = 64;  // one in so many accesses ends a turn
enum Option { kWide = 1 << kOrderingBits };

void after_access(Execution& x, Ordering ordering) {
  if (ordering.is_strong) {
    x.yield();  // perhaps a spin loop: others must get on
  } else if (x.machine.random.one_in(kPreemption)) {
    x.reschedule();
  }
}

template <class T, Space kSpace>
void run_load(Execution& x, const Instruction& i) {
  const Ordering ordering = Ordering::decode(i.option);
  const Addresses addresses(x, i);
  Accessor accessor(x, AccessKind::kRead, ordering.strength());
  const size_t count = i.results.size();
  for_each_lane(x.mask, [&](int lane) {
    const char* from = accessor.resolve<kSpace>(lane, addresses.lane[lane], sizeof(T) * count);
    order_read(x, lane, from, kSpace, ordering);
    for (size_t e = 0; e < count; ++e) {
      T value;
      std::memcpy(&value, from + e * sizeof(T), sizeof(T));
      if ((i.option & kWide) != 0) {
        x.at<uint64_t>(i.results[e])[lane] = static_cast<uint64_t>(value);
      } else {
        x.at<uint32_t>(i.results[e])[lane] = static_cast<uint32_t>(value);
      }
    }
  });
  after_access(x, ordering);
}

template <class T, Space kSpace>
void run_store(Execution& x, const Instruction& i) {
  const Ordering ordering = Ordering::decode(i.option);
  const Addresses addresses(x, i);
  Accessor accessor(x, AccessKind::kWrite, ordering.strength());
  const size_t count = i.sources.size();
  for_each_lane(x.mask, [&](int lane) {
    char* to = accessor.resolve<kSpace>(lane, addresses.lane[lane], sizeof(T) * count);
    order_write(x, lane, to, kSpace, ordering, false);
    for (size_t e = 0; e < count; ++e) {
      const auto value = (i.option & kWide) != 0
                             ? static_cast<T>(x.at<uint64_t>(i.sources[e])[lane])
                             : static_cast<T>(x.at<uint32_t>(i.sources[e])[lane]);
      std::memcpy(to + e * sizeof(T), &value, sizeof(T));
    }
  });
  after_access(x, ordering);
}

// ---- fences and addresses ----------------------------------------------------------------------

void run_fence(Execution& x, const Instruction& i) {
  if (!x.machine.options.race) return;
  for_each_lane(x.mask,
                [&](int lane) { x.block->clocks->fence(x.warp->index, lane, i.option != 0); });
}
void run_proxy_fence(Execution& x, const Instruction&) {
  if (!x.machine.options.race) return;
  for_each_lane(x.mask, [&](int lane) { x.block->clocks->proxy_fence(x.warp->index, lane); });
}
void run_nothing(Execution&, const Instruction&) {}

void run_shared_to_generic(Execution& x, const Instruction& i) {
  const auto arena = reinterpret_cast<uint64_t>(x.block->arena);
  unary<uint64_t, uint64_t>(x, i, [=](uint64_t a) { return arena + a; });
}
void run_generic_to_shared(Execution& x, const Instruction& i) {
  const auto arena = reinterpret_cast<uint64_t>(x.block->arena);
  unary<uint64_t, uint64_t>(x, i, [=](uint64_t a) { return a - arena; });
}
void run_param_to_generic(Execution& x, const Instruction& i) {
  const auto params = reinterpret_cast<uint64_t>(x.machine.params.data());
  unary<uint64_t, uint64_t>(x, i, [=](uint64_t a) { return params + a; });
}
void run_same_address(Execution& x, const Instruction& i) {
  unary<uint64_t, uint64_t>(x, i, [](uint64_t a) { return a; });
}

// The address in the block of a rank that stands where one stands in this block.
void run_map_address(Execution& x, const Instruction& i) {
  const uint32_t* rank = x.at<uint32_t>(i.b);
  const auto blocks = static_cast<uint32_t>(x.block->cluster->blocks.size());
  for_each_lane(x.mask, [&](int lane) {
    if (rank[lane] >= blocks) x.fail("mapa: no block of that rank in the cluster", lane);
  });
  binary<uint32_t, uint32_t, uint32_t>(x, i, [](uint32_t address, uint32_t of) {
    return (address & kOwnAddress) | (of + 1) << kRankShift;
  });
}

void run_isspacep(Execution& x, const Instruction& i) {
  const uint64_t* a = x.at<uint64_t>(i.a);
  const Block& block = *x.block;
  const SharedObject& last = block.shared.back();
  const auto arena = reinterpret_cast<uint64_t>(block.arena);
  const LaneMask is_shared =
      lanes_where([&](int lane) { return a[lane] - arena < last.offset + last.bytes; });
  set_predicate(x, i.d, i.option != 0 ? is_shared : ~is_shared);
}

// ---- decoding ----------------------------------------------------------------------------------

template <Space kSpace>
Handler load_handler(ptx::Type type) {
  const bool is_signed = type.kind == ptx::Type::Kind::kSigned;
  switch (type.bits) {
    case 8:
      return is_signed ? run_load<int8_t, kSpace> : run_load<uint8_t, kSpace>;
    case 16:
      return is_signed ? run_load<int16_t, kSpace> : run_load<uint16_t, kSpace>;
    case 32:
      return is_signed ? run_load<int32_t, kSpace> : run_load<uint32_t, kSpace>;
    case 64:
      return run_load<uint64_t, kSpace>;
    default:
      throw Unsupported{"type"};
  }
}
template <Space kSpace>
Handler store_handler(ptx::Type type) {
  switch (type.bits) {
    case 8:
      return run_store<uint8_t, kSpace>;
    case 16:
      return run_store<uint16_t, kSpace>;
    case 32:
      return run_store<uint32_t, kSpace>;
    case 64:
      return run_store<uint64_t, kSpace>;
    default:
      throw Unsupported{"type"};
  }
}

bool names_shared(const ptx::Statement& s) {
  return s.has("shared") || s.has("shared::cta") || s.has("shared::cluster");
}

void decode_load_store(Decoder& decoder, const ptx::Statement& s, Instruction* i) {
  const bool is_load = s.parts[0] == "ld";
  const ptx::Type type = first_type(s);
  if (s.has("async")) throw Unsupported{"asynchronous store"};
  const Ordering ordering = Ordering::of(s, {});
  if (s.has("shared::cluster")) {
    if (ordering.is_strong) throw Unsupported{"ordered access to the cluster's shared memory"};
    i->run = is_load ? load_handler<Space::kCluster>(type) : store_handler<Space::kCluster>(type);
  } else if (names_shared(s)) {
    i->run = is_load ? load_handler<Space::kShared>(type) : store_handler<Space::kShared>(type);
  } else if (s.has("local")) {
    i->run = is_load ? load_handler<Space::kLocal>(type) : store_handler<Space::kLocal>(type);
  } else {
    i->run = is_load ? load_handler<Space::kGeneric>(type) : store_handler<Space::kGeneric>(type);
  }
  i->option = ordering.encode();
  decoder.address(s.operands.at(is_load ? 1 : 0));
  const ptx::Operand& values = s.operands.at(is_load ? 0 : 1);
  const bool is_vector = values.kind == ptx::Operand::Kind::kVector;
  for (size_t e = 0; e < (is_vector ? values.elements.size() : 1); ++e) {
    const ptx::Operand& value = is_vector ? values.elements[e] : values;
    bool is_wide = false;
    if (is_load) {
      i->results.push_back(decoder.result_as_is(value, &is_wide));
    } else {
      i->sources.push_back(decoder.source_as_is(value, type.bits, &is_wide));
    }
    if (type.bits == 64 && !is_wide) throw Unsupported{"narrow register"};
    if (e > 0 && is_wide != ((i->option & kWide) != 0)) throw Unsupported{"mixed registers"};
    if (is_wide) i->option |= kWide;
  }
}

void decode_cvta(Decoder& decoder, const ptx::Statement& s, Instruction* i) {
  i->d = decoder.result(s.operands.at(0), 64);
  i->a = decoder.source(s.operands.at(1), 64);
  i->run = run_same_address;
  if (names_shared(s)) i->run = s.has("to") ? run_generic_to_shared : run_shared_to_generic;
  if (s.has("param")) i->run = run_param_to_generic;
}

void decode_fence(const ptx::Statement& s, Instruction* i) {
  if (s.has("proxy")) {
    if (!s.has("async") && !s.has("async.shared::cta")) throw Unsupported{"proxy"};
    i->run = run_proxy_fence;
  } else if (s.has("mbarrier_init")) {
    i->run = run_nothing;
  } else {
    i->run = run_fence;
    i->option = s.has("cta") ? 1 : 0;
  }
}

}  // namespace

bool decode_memory(Decoder& decoder, const ptx::Statement& s, Instruction* i) {
  const std::string& opcode = s.parts[0];
  if (opcode == "ld" || opcode == "st" || opcode == "ldu") {
    decode_load_store(decoder, s, i);
  } else if (opcode == "cvta") {
    decode_cvta(decoder, s, i);
  } else if (opcode == "mapa") {
    if (!s.has("shared::cluster") || !s.has("u32")) throw Unsupported{"state space"};
    i->run = run_map_address;
    i->d = decoder.result(s.operands.at(0), 32);
    i->a = decoder.source(s.operands.at(1), 32);
    i->b = decoder.source(s.operands.at(2), 32);
  } else if (opcode == "fence" || opcode == "membar") {
    decode_fence(s, i);
  } else if (opcode == "isspacep") {
    if (!names_shared(s) && !s.has("global")) throw Unsupported{"state space"};
    i->run = run_isspacep;
    i->option = names_shared(s) ? 1 : 0;
    i->d = decoder.result(s.operands.at(0), 1);
    i->a = decoder.source(s.operands.at(1), 64);
  } else if (opcode == "prefetch" || opcode == "prefetchu" || opcode == "discard" ||
             opcode == "applypriority") {
    i->run = run_nothing;
  } else {
    return false;
  }
  return true;
}

}  // namespace emulator
