// mbarrier; the copies that complete on one: bulk ones (cp.async.bulk, one-dimensional), and those
// of cp.async before a cp.async.mbarrier.arrive.
#include <cstring>
#include <utility>

#include "runtime/access.h"
#include "runtime/decode.h"
#include "runtime/ops.h"

namespace emulator {
namespace {

constexpr uint32_t kMagic = 5;
constexpr uint32_t kPatience = 16;      // one in so many vain waits lets a copy happen
constexpr uint32_t kNoBytes = 1 << 19;  // bias of the count of outstanding bytes

constexpr uint64_t kCountMask = (1 << 20) - 1;

// The contents of the 64-bit object; hardware's own are opaque, too.
struct Mbarrier {
  uint64_t pending : 20;
  uint64_t expected : 20;
  uint64_t phase : 1;
  uint64_t magic : 3;
  uint64_t bytes : 20;

  void expect_bytes(uint64_t count) { bytes = (bytes + count) & kCountMask; }
  void arrive(uint64_t count) { pending = (pending - count) & kCountMask; }
};
static_assert(sizeof(Mbarrier) == 8);

// The mbarrier at a shared address; checks the access to it.
Mbarrier& find(Execution& x, int lane, uint64_t address, AccessKind kind) {
  Accessor accessor(x, kind, Strength::kStrong);
  char* place = accessor.resolve<Space::kShared>(lane, address, sizeof(Mbarrier));
  Mbarrier& mbarrier = *reinterpret_cast<Mbarrier*>(place);
  if (mbarrier.magic != kMagic) x.fail("mbarrier is not initialised", lane);
  return mbarrier;
}

void flip_when_complete(Block* block, uint32_t address, Mbarrier* mbarrier) {
  if (mbarrier->pending != 0 || mbarrier->bytes != kNoBytes) return;
  mbarrier->phase ^= 1;
  mbarrier->pending = mbarrier->expected;
  Block::MbarrierMeetings& meetings = block->mbarriers[address];
  meetings.complete = std::exchange(meetings.pending, {});
}

void run_init(Execution& x, const Instruction& i) {
  const Addresses addresses(x, i);
  for_each_lane(x.mask, [&](int lane) {
    Accessor accessor(x, AccessKind::kWrite, Strength::kPlain);
    char* place = accessor.resolve<Space::kShared>(lane, addresses.lane[lane], sizeof(Mbarrier));
    const uint32_t count = x.at<uint32_t>(i.b)[lane];
    const Mbarrier fresh{count & kCountMask, count & kCountMask, 0, kMagic, kNoBytes};
    std::memcpy(place, &fresh, sizeof fresh);
    x.block->mbarriers.erase(static_cast<uint32_t>(addresses.lane[lane]));
  });
}

enum ArriveOption { kArrives = 1, kExpectsBytes = 2 };

// arrive, arrive.expect_tx and expect_tx; b: bytes or the number of arrivals; target: a mutation's.
void run_arrive(Execution& x, const Instruction& i) {
  const Addresses addresses(x, i);
  const bool expects_bytes = (i.option & kExpectsBytes) != 0;
  for_each_lane(x.mask, [&](int lane) {
    Mbarrier& mbarrier = find(x, lane, addresses.lane[lane], AccessKind::kWrite);
    const auto address = static_cast<uint32_t>(addresses.lane[lane]);
    const uint32_t operand = x.at<uint32_t>(i.b)[lane] + static_cast<uint32_t>(i.target);
    if (expects_bytes) {
      if (operand >= kNoBytes) x.fail("more bytes than an mbarrier counts", lane);
      mbarrier.expect_bytes(operand);
    }
    if (i.has_d) x.at<uint64_t>(i.d)[lane] = mbarrier.phase;
    if ((i.option & kArrives) != 0) {
      const uint32_t arrivals = expects_bytes ? 1 : operand;
      if (mbarrier.pending < arrivals) x.fail("more arrivals than an mbarrier counts", lane);
      mbarrier.arrive(arrivals);
      x.block->clocks->arrive(x.warp->index, lane, &x.block->mbarriers[address].pending);
    }
    flip_when_complete(x.block, address, &mbarrier);
  });
  x.yield();
}

// try_wait and test_wait; b: parity, or the state that arrive returned; target: a mutation's.
template <class State>
void run_wait(Execution& x, const Instruction& i) {
  const Addresses addresses(x, i);
  LaneMask is_done = 0;
  for_each_lane(x.mask, [&](int lane) {
    const Mbarrier& mbarrier = find(x, lane, addresses.lane[lane], AccessKind::kRead);
    const State state = x.at<State>(i.b)[lane] + static_cast<State>(i.target);
    if (mbarrier.phase == (state & 1)) return;
    is_done |= lane_bit(lane);
    const auto address = static_cast<uint32_t>(addresses.lane[lane]);
    x.block->clocks->leave(x.warp->index, lane, x.block->mbarriers[address].complete);
  });
  if (i.has_d) set_predicate(x, i.d, is_done);
  if (is_done == x.mask) return;
  if (x.machine.random.one_in(kPatience)) advance_engine(&x.machine);
  x.yield();
}

// ---- bulk copies -------------------------------------------------------------------------------

struct Bulk {
  uint32_t to;
  const char* from;
  uint32_t bytes;
  uint32_t mbarrier;
};

void complete(Machine* machine, Block* block, const Bulk& bulk, const Meeting& issued) {
  std::memcpy(block->arena + bulk.to, bulk.from, bulk.bytes);
  if (machine->options.race) {
    block->clocks->next_engine_clock();
    finish_bulk_copy(block->shadow.get(), bulk.to, bulk.bytes, block->clocks.get());
  }
  auto& mbarrier = *reinterpret_cast<Mbarrier*>(block->arena + bulk.mbarrier);
  mbarrier.expect_bytes(uint64_t{0} - bulk.bytes);
  block->clocks->engine_arrive(issued, &block->mbarriers[bulk.mbarrier].pending);
  flip_when_complete(block, bulk.mbarrier, &mbarrier);
}

void issue(Execution& x, int lane, const Bulk& bulk) {
  Block* block = x.block;
  if (!is_in_shared(*block, bulk.to, bulk.bytes)) {
    x.fail("cp.async.bulk destination out of bounds", lane, FaultKind::kIllegalAddress);
  }
  find(x, lane, bulk.mbarrier, AccessKind::kWrite);
  Meeting issued;
  if (x.machine.options.race) {
    const Actor actor = make_actor(block->clocks.get(), x.warp->index, lane);
    start_copy(block->shadow.get(), bulk.to, bulk.bytes, actor, true, shared_place(*block));
  }
  block->clocks->arrive(x.warp->index, lane, &issued);
  std::memset(block->arena + bulk.to, 0xFF, bulk.bytes);
  const AsyncMode mode = x.machine.options.async;
  Machine* machine = &x.machine;
  if (mode == AsyncMode::kEarly || (mode == AsyncMode::kRandom && machine->random.one_in(4))) {
    complete(machine, block, bulk, issued);
  } else {
    machine->engine.push_back({block, [=] { complete(machine, block, bulk, issued); }});
  }
}

// a: source; b: destination; c: bytes; sources[0]: mbarrier.
void run_bulk_copy(Execution& x, const Instruction& i) {
  const Addresses from(x, i);
  const Addresses to(x, i.b, i.is_second_narrow, i.second_offset);
  for_each_lane(x.mask, [&](int lane) {
    const uint32_t bytes = x.at<uint32_t>(i.c)[lane];
    if (((to.lane[lane] | from.lane[lane] | bytes) & 15) != 0) {
      x.fail("misaligned cp.async.bulk", lane, FaultKind::kMisaligned);
    }
    Accessor accessor(x, AccessKind::kRead, Strength::kPlain);
    const char* source = accessor.generic(lane, from.lane[lane], bytes);
    const uint32_t mbarrier = x.at<uint32_t>(i.sources[0])[lane] + static_cast<uint32_t>(i.target);
    issue(x, lane, {static_cast<uint32_t>(to.lane[lane]), source, bytes, mbarrier});
  });
}

// ---- arrivals that wait for the thread's copies ------------------------------------------------

// What one lane has started since its last arrival of this kind, and what it knew then.
struct LateArrival {
  Actor actor;
  std::vector<AsyncCopy> copies;
  Meeting issued;
  uint32_t mbarrier;
};

void complete(Machine* machine, Block* block, std::vector<LateArrival>* arrivals) {
  for (LateArrival& arrival : *arrivals) {
    for (AsyncCopy& copy : arrival.copies) {
      complete_copy(*block, &copy);
      if (machine->options.race) {
        finish_copy(block->shadow.get(), copy.destination, copy.bytes, arrival.actor);
      }
    }
    auto& mbarrier = *reinterpret_cast<Mbarrier*>(block->arena + arrival.mbarrier);
    if (mbarrier.pending == 0) {
      throw Fault(FaultKind::kFailure, "more arrivals of copies than an mbarrier counts");
    }
    mbarrier.arrive(1);
    BlockClocks::late_arrive(arrival.issued, &block->mbarriers[arrival.mbarrier].pending);
    flip_when_complete(block, arrival.mbarrier, &mbarrier);
  }
}

// The copies leave their groups. The lanes that run together arrive together, at any later time.
void run_arrive_on_copies(Execution& x, const Instruction& i) {
  const Addresses addresses(x, i);
  auto arrivals = std::make_shared<std::vector<LateArrival>>();
  for_each_lane(x.mask, [&](int lane) {
    find(x, lane, addresses.lane[lane], AccessKind::kWrite);
    AsyncCopies& copies = x.warp->copies[lane];
    LateArrival arrival{make_actor(x.block->clocks.get(), x.warp->index, lane),
                        std::exchange(copies.copies, {}),
                        {},
                        static_cast<uint32_t>(addresses.lane[lane])};
    copies = {};
    x.block->clocks->arrive(x.warp->index, lane, &arrival.issued);
    arrivals->push_back(std::move(arrival));
  });
  Machine* machine = &x.machine;
  Block* block = x.block;
  const AsyncMode mode = machine->options.async;
  if (mode == AsyncMode::kEarly || (mode == AsyncMode::kRandom && machine->random.one_in(4))) {
    complete(machine, block, arrivals.get());
  } else {
    machine->engine.push_back({block, [=] { complete(machine, block, arrivals.get()); }});
  }
  x.yield();
}

void run_nothing(Execution&, const Instruction&) {}

// ---- decoding ----------------------------------------------------------------------------------

void decode_bulk(Decoder& decoder, const ptx::Statement& s, Instruction* i) {
  if (s.has("prefetch")) {
    i->run = run_nothing;
    return;
  }
  const bool is_load = (s.has("shared::cluster") || s.has("shared::cta")) && s.parts.size() > 4 &&
                       s.parts[4] == "global" && s.operands.size() == 4;
  if (!is_load || s.has("tensor") || s.has("multicast::cluster")) throw Unsupported{"bulk copy"};
  i->run = run_bulk_copy;
  decoder.address(s.operands[1]);
  decoder.second_address(s.operands[0]);
  i->c = decoder.source(s.operands[2], 32);
  const ptx::Operand& mbarrier = s.operands[3];
  i->sources.push_back(decoder.source(mbarrier.elements.at(0), 32));
  i->target = static_cast<int32_t>(mbarrier.value);
}

// What a mutation adds to a register; to an immediate it is added already.
int32_t added_by_mutation(const ptx::Statement& s) {
  const ptx::Operand& last = s.operands.back();
  const bool is_register = last.kind == ptx::Operand::Kind::kRegister;
  return is_register ? static_cast<int32_t>(last.value) : 0;
}

void decode_arrive(Decoder& decoder, const ptx::Statement& s, Instruction* i) {
  const bool arrives = s.has("arrive");
  const bool expects_bytes = s.has("expect_tx");
  size_t operand = 0;
  i->target = added_by_mutation(s);
  if (arrives) decoder.results(s.operands.at(operand++), 64);
  decoder.address(s.operands.at(operand++));
  i->run = run_arrive;
  i->option = (arrives ? kArrives : 0) | (expects_bytes ? kExpectsBytes : 0);
  i->b = s.operands.size() > operand ? decoder.source(s.operands[operand], 32)
                                     : decoder.constant(1, 32);
  if (s.has("noComplete")) throw Unsupported{"noComplete"};
}

}  // namespace

bool decode_mbarrier(Decoder& decoder, const ptx::Statement& s, Instruction* i) {
  if (s.parts[0] == "cp" && s.has("bulk")) {
    decode_bulk(decoder, s, i);
    return true;
  }
  if (s.parts[0] == "cp" && s.has("mbarrier")) {
    if (!s.has("noinc")) throw Unsupported{"cp.async.mbarrier.arrive without .noinc"};
    decoder.address(s.operands.at(0));
    i->run = run_arrive_on_copies;
    return true;
  }
  if (s.parts[0] != "mbarrier") return false;
  if (s.has("init")) {
    i->run = run_init;
    decoder.address(s.operands.at(0));
    i->b = decoder.source(s.operands.at(1), 32);
  } else if (s.has("inval")) {
    i->run = run_nothing;
  } else if (s.has("arrive") || s.has("expect_tx")) {
    decode_arrive(decoder, s, i);
  } else if (s.has("try_wait") || s.has("test_wait")) {
    const bool is_parity = s.has("parity");
    i->run = is_parity ? run_wait<uint32_t> : run_wait<uint64_t>;
    decoder.results(s.operands.at(0), 1);
    decoder.address(s.operands.at(1));
    i->b = decoder.source(s.operands.at(2), is_parity ? 32 : 64);
    i->target = added_by_mutation(s);
  } else {
    throw Unsupported{"operation"};
  }
  return true;
}

}  // namespace emulator
