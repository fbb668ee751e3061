// cp.async: copies to shared memory that a thread issues, groups and waits for.
//
// Until its thread has waited, the destination holds NaN or the data, as the seed decides, and the
// source is read when the copy is issued or when it is waited for: hardware may do any of it.
#include <cstring>
#include <utility>

#include "runtime/access.h"
#include "runtime/decode.h"
#include "runtime/ops.h"

namespace emulator {

void complete_copy(const Block& block, AsyncCopy* copy) {
  if (std::exchange(copy->is_done, true)) return;
  char* destination = block.arena + copy->destination;
  if (copy->valid != 0) {
    const char* source = copy->has_snapshot ? copy->snapshot.data() : copy->source;
    std::memcpy(destination, source, copy->valid);
  }
  std::memset(destination + copy->valid, 0, static_cast<size_t>(copy->bytes - copy->valid));
}

namespace {

void issue(Execution& x, int lane, uint64_t to, uint64_t from, uint8_t bytes, uint32_t valid) {
  const Block& block = *x.block;
  if (valid > bytes) x.fail("source size of cp.async out of range", lane);
  if (to % bytes != 0 || (valid != 0 && from % bytes != 0)) {
    x.fail("misaligned cp.async", lane, FaultKind::kMisaligned);
  }
  if (!is_in_shared(block, to, bytes)) {
    x.fail("cp.async destination out of bounds: at " + std::to_string(to), lane,
           FaultKind::kIllegalAddress);
  }
  AsyncCopy copy{.destination = static_cast<uint32_t>(to),
                 .source = nullptr,
                 .bytes = bytes,
                 .valid = static_cast<uint8_t>(valid),
                 .is_done = false,
                 .has_snapshot = x.machine.random.one_in(2),
                 .snapshot = {}};
  Accessor accessor(x, AccessKind::kRead, Strength::kPlain);
  if (valid != 0) {
    copy.source = accessor.generic(lane, from, valid);
    std::memcpy(copy.snapshot.data(), copy.source, valid);
  }
  if (x.machine.options.race) {
    start_copy(block.shadow.get(), to, bytes, accessor.actor(lane), false, shared_place(block));
  }
  std::memset(block.arena + to, 0xFF, bytes);
  const AsyncMode mode = x.machine.options.async;
  const bool is_early =
      mode == AsyncMode::kEarly || (mode == AsyncMode::kRandom && x.machine.random.one_in(2));
  if (is_early) complete_copy(block, &copy);
  AsyncCopies& copies = x.warp->copies[lane];
  copies.copies.push_back(copy);
  ++copies.open;
  ++x.machine.counters.async_copies;
}

// a: source; b: destination; c: size of the source, where one is given.
void run_copy(Execution& x, const Instruction& i) {
  const Addresses from(x, i);
  const Addresses to(x, i.b, i.is_second_narrow, i.second_offset);
  for_each_lane(x.mask, [&](int lane) {
    const uint32_t valid = i.option != 0 ? x.at<uint32_t>(i.c)[lane] : i.count;
    issue(x, lane, static_cast<uint32_t>(to.lane[lane]), from.lane[lane], i.count, valid);
  });
}

void commit(AsyncCopies* copies) { copies->group_sizes.push_back(std::exchange(copies->open, 0)); }

void run_commit(Execution& x, const Instruction&) {
  for_each_lane(x.mask, [&](int lane) { commit(&x.warp->copies[lane]); });
}

// Completes all but the `pending` newest groups.
void wait(Execution& x, int lane, size_t pending) {
  AsyncCopies& copies = x.warp->copies[lane];
  size_t finished = 0;
  while (copies.group_sizes.size() > pending) {
    finished += copies.group_sizes.front();
    copies.group_sizes.pop_front();
  }
  if (finished == 0) return;
  const Actor actor = make_actor(x.block->clocks.get(), x.warp->index, lane);
  for (size_t c = 0; c < finished; ++c) {
    AsyncCopy& copy = copies.copies[c];
    complete_copy(*x.block, &copy);
    if (x.machine.options.race) {
      finish_copy(x.block->shadow.get(), copy.destination, copy.bytes, actor);
    }
  }
  copies.copies.erase(copies.copies.begin(),
                      copies.copies.begin() + static_cast<ptrdiff_t>(finished));
}

void run_wait_group(Execution& x, const Instruction& i) {
  for_each_lane(x.mask, [&](int lane) { wait(x, lane, static_cast<size_t>(i.option)); });
}
void run_wait_all(Execution& x, const Instruction&) {
  for_each_lane(x.mask, [&](int lane) {
    commit(&x.warp->copies[lane]);
    wait(x, lane, 0);
  });
}

}  // namespace

bool decode_async(Decoder& decoder, const ptx::Statement& s, Instruction* i) {
  if (s.parts[0] != "cp" || !s.has("async") || s.has("bulk") || s.has("mbarrier")) return false;
  if (s.has("commit_group")) {
    i->run = run_commit;
  } else if (s.has("wait_group")) {
    i->run = run_wait_group;
    i->option = static_cast<int32_t>(decoder.immediate(s.operands.at(0)));
  } else if (s.has("wait_all")) {
    i->run = run_wait_all;
  } else {
    i->run = run_copy;
    decoder.address(s.operands.at(1));
    decoder.second_address(s.operands.at(0));
    i->count = static_cast<uint8_t>(decoder.immediate(s.operands.at(2)));
    if (i->count != 4 && i->count != 8 && i->count != 16) throw Unsupported{"size"};
    if (s.operands.size() > 3) {
      i->option = 1;
      i->c = decoder.source(s.operands[3], 32);
    }
  }
  return true;
}

}  // namespace emulator
