// Warp collectives: shfl, vote, match, redux, bar.warp.sync, elect, activemask.
//
// Only bar.warp.sync orders memory; the others exchange values and nothing else.
#include <algorithm>

#include "runtime/decode.h"
#include "runtime/gather.h"
#include "runtime/ops.h"

namespace emulator {
namespace {

enum ShuffleMode { kUp, kDown, kButterfly, kIndex };
enum VoteMode { kBallot, kAny, kAll, kUniform };

// Calls f with the lanes of each complete member mask; the masks are the lanes of a slot.
template <class F>
void gather_members(Execution& x, const Instruction& i, Slot members, F f) {
  const uint32_t* masks = x.at<uint32_t>(members);
  gather(x, i, [=](int lane) { return masks[lane]; }, f);
}

// The lane that one lane reads from; -1 when that is outside its segment. PTX ISA, shfl.sync.
int shuffle_source(int mode, int lane, uint32_t b, uint32_t c) {
  const int distance = static_cast<int>(b & 31);
  const int segment = static_cast<int>(c >> 8 & 31);
  const int lowest = lane & segment;
  const int highest = lowest | (static_cast<int>(c & 31) & ~segment);
  switch (mode) {
    case kUp:
      return lane - distance >= highest ? lane - distance : -1;
    case kDown:
      return lane + distance <= highest ? lane + distance : -1;
    case kButterfly:
      return (lane ^ distance) <= highest ? lane ^ distance : -1;
    default: {
      const int wanted = lowest | (distance & ~segment);
      return wanted <= highest ? wanted : -1;
    }
  }
}

void run_shuffle(Execution& x, const Instruction& i) {
  gather_members(x, i, i.sources[0], [&](LaneMask lanes) {
    const uint32_t* a = x.at<uint32_t>(i.a);
    const uint32_t* b = x.at<uint32_t>(i.b);
    const uint32_t* c = x.at<uint32_t>(i.c);
    uint32_t value[kLanes];
    LaneMask is_inside = 0;
    for_each_lane(lanes, [&](int lane) {
      int from = shuffle_source(i.option, lane, b[lane], c[lane]);
      if (from >= 0) is_inside |= lane_bit(lane);
      if (from < 0) from = lane;
      if ((lanes >> from & 1) == 0) x.fail("shuffle reads a lane outside the member mask", lane);
      value[lane] = a[from];
    });
    if (i.has_d) each_lane<uint32_t>(x, i.d, [&](int lane) { return value[lane]; });
    if (i.has_p) set_predicate(x, i.p, is_inside);
  });
}

void run_vote(Execution& x, const Instruction& i) {
  gather_members(x, i, i.b, [&](LaneMask lanes) {
    const LaneMask holds = lanes & (i.is_c_negated ? ~x.predicate(i.a) : x.predicate(i.a));
    switch (i.option) {
      case kBallot:
        each_lane<uint32_t>(x, i.d, [=](int) { return holds; });
        break;
      case kAny:
        set_predicate(x, i.d, holds != 0 ? kAllLanes : 0);
        break;
      case kAll:
        set_predicate(x, i.d, holds == lanes ? kAllLanes : 0);
        break;
      default:
        set_predicate(x, i.d, holds == lanes || holds == 0 ? kAllLanes : 0);
    }
  });
}

template <class T>
void run_match_any(Execution& x, const Instruction& i) {
  gather_members(x, i, i.b, [&](LaneMask lanes) {
    const T* a = x.at<T>(i.a);
    each_lane<uint32_t>(x, i.d, [&](int lane) {
      return lanes & lanes_where([&](int other) { return a[other] == a[lane]; });
    });
  });
}

template <class T>
void run_match_all(Execution& x, const Instruction& i) {
  gather_members(x, i, i.b, [&](LaneMask lanes) {
    const T* a = x.at<T>(i.a);
    const T first = a[first_lane(lanes)];
    const bool is_same = (lanes & ~lanes_where([&](int lane) { return a[lane] == first; })) == 0;
    each_lane<uint32_t>(x, i.d, [&](int) { return is_same ? lanes : 0; });
    if (i.has_p) set_predicate(x, i.p, is_same ? kAllLanes : 0);
  });
}

constexpr auto kAddWords = [](uint32_t a, uint32_t b) { return a + b; };
constexpr auto kAndWords = [](uint32_t a, uint32_t b) { return a & b; };
constexpr auto kOrWords = [](uint32_t a, uint32_t b) { return a | b; };
constexpr auto kXorWords = [](uint32_t a, uint32_t b) { return a ^ b; };
constexpr auto kMinWord = [](auto a, auto b) { return std::min(a, b); };
constexpr auto kMaxWord = [](auto a, auto b) { return std::max(a, b); };

template <class T, auto F>
void run_reduce(Execution& x, const Instruction& i) {
  gather_members(x, i, i.b, [&](LaneMask lanes) {
    const uint32_t* a = x.at<uint32_t>(i.a);
    T total = static_cast<T>(a[first_lane(lanes)]);
    for_each_lane(lanes & (lanes - 1),
                  [&](int lane) { total = F(total, static_cast<T>(a[lane])); });
    each_lane<uint32_t>(x, i.d, [&](int) { return static_cast<uint32_t>(total); });
  });
}

void run_sync(Execution& x, const Instruction& i) {
  gather_members(x, i, i.a, [&](LaneMask lanes) {
    if (!x.machine.options.race) return;
    x.block->clocks->sync_warp(x.warp->index, lanes, lanes == x.warp->alive);
  });
}

// The lowest lane is elected; hardware may choose another.
void run_elect(Execution& x, const Instruction& i) {
  gather_members(x, i, i.a, [&](LaneMask lanes) {
    const int leader = first_lane(lanes);
    if (i.has_d) each_lane<uint32_t>(x, i.d, [=](int) { return static_cast<uint32_t>(leader); });
    if (i.has_p) set_predicate(x, i.p, lane_bit(leader));
  });
}

void run_active_mask(Execution& x, const Instruction& i) {
  each_lane<uint32_t>(x, i.d, [&](int) { return x.mask; });
}

Handler reduction(const ptx::Statement& s, ptx::Type type) {
  const bool is_signed = type.kind == ptx::Type::Kind::kSigned;
  if (type.is_float()) throw Unsupported{"type"};
  if (s.has("add")) return run_reduce<uint32_t, kAddWords>;
  if (s.has("and")) return run_reduce<uint32_t, kAndWords>;
  if (s.has("or")) return run_reduce<uint32_t, kOrWords>;
  if (s.has("xor")) return run_reduce<uint32_t, kXorWords>;
  if (s.has("min"))
    return is_signed ? run_reduce<int32_t, kMinWord> : run_reduce<uint32_t, kMinWord>;
  if (s.has("max"))
    return is_signed ? run_reduce<int32_t, kMaxWord> : run_reduce<uint32_t, kMaxWord>;
  throw Unsupported{"operation"};
}

void decode_shuffle(Decoder& decoder, const ptx::Statement& s, Instruction* i) {
  i->run = run_shuffle;
  i->option = s.has("up") ? kUp : s.has("down") ? kDown : s.has("bfly") ? kButterfly : kIndex;
  decoder.results(s.operands.at(0), 32);
  i->a = decoder.source(s.operands.at(1), 32);
  i->b = decoder.source(s.operands.at(2), 32);
  i->c = decoder.source(s.operands.at(3), 32);
  i->sources.push_back(decoder.source(s.operands.at(4), 32));
}

void decode_vote(Decoder& decoder, const ptx::Statement& s, Instruction* i) {
  i->run = run_vote;
  i->option = s.has("ballot") ? kBallot : s.has("any") ? kAny : s.has("all") ? kAll : kUniform;
  decoder.results(s.operands.at(0), i->option == kBallot ? 32 : 1);
  i->a = decoder.predicate(s.operands.at(1));
  i->is_c_negated = s.operands.at(1).is_negated;
  i->b = decoder.source(s.operands.at(2), 32);
}

void decode_value_exchange(Decoder& decoder, const ptx::Statement& s, Instruction* i) {
  const ptx::Type type = first_type(s);
  const bool is_wide = type.bits == 64;
  if (s.parts[0] == "redux") {
    i->run = reduction(s, type);
  } else if (s.has("any")) {
    i->run = is_wide ? run_match_any<uint64_t> : run_match_any<uint32_t>;
  } else {
    i->run = is_wide ? run_match_all<uint64_t> : run_match_all<uint32_t>;
  }
  decoder.results(s.operands.at(0), 32);
  i->a = decoder.source(s.operands.at(1), type.bits);
  i->b = decoder.source(s.operands.at(2), 32);
}

}  // namespace

bool decode_warp(Decoder& decoder, const ptx::Statement& s, Instruction* i) {
  const std::string& opcode = s.parts[0];
  if (opcode == "shfl") {
    decode_shuffle(decoder, s, i);
  } else if (opcode == "vote") {
    decode_vote(decoder, s, i);
  } else if (opcode == "match" || opcode == "redux") {
    decode_value_exchange(decoder, s, i);
  } else if (opcode == "bar" && s.has("warp")) {
    i->run = run_sync;
    i->a = decoder.source(s.operands.at(0), 32);
  } else if (opcode == "elect") {
    i->run = run_elect;
    decoder.results(s.operands.at(0), 32);
    i->a = decoder.source(s.operands.at(1), 32);
  } else if (opcode == "activemask") {
    i->run = run_active_mask;
    decoder.results(s.operands.at(0), 32);
  } else {
    return false;
  }
  return true;
}

}  // namespace emulator
