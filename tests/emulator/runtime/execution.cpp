// Runs groups of lanes, instruction by instruction.
#include <cstring>
#include <utility>

#include "runtime/machine.h"
#include "runtime/wgmma.h"

namespace emulator {

Frame::Frame(const Function& of, Frame* called_by, LaneMask called_lanes)
    : function(of),
      caller(called_by),
      lanes(called_lanes),
      registers(of.frame_bytes),
      defined(of.register_count),
      scratch(of.scratch_bytes * kLanes),
      local(of.local_bytes * kLanes, 0x7F),
      depth(called_by == nullptr ? 0 : called_by->depth + 1) {
  if (of.local_bytes == 0) return;
  for (int lane = 0; lane < kLanes; ++lane) {
    const char* base = local.data() + of.local_bytes * static_cast<size_t>(lane);
    std::memcpy(registers.data() + of.local_base + 8 * static_cast<size_t>(lane), &base, 8);
  }
}

Warp::Warp(Block* of, int number, LaneMask lanes)
    : block(of), index(number), alive(lanes), ready(lanes) {}
Warp::~Warp() = default;

void Execution::yield() {
  if (++machine.spins > machine.options.max_spins) {
    fail("livelock: more than " + std::to_string(machine.options.max_spins) +
             " scheduling points in one launch",
         -1, FaultKind::kTimeout);
  }
  warp->has_yielded = true;
  limit = 0;
}

namespace {

// Lanes that would read a register before it has a value.
LaneMask undefined_lanes(const Execution& x, const Instruction& i) {
  LaneMask defined = kAllLanes;
  for (const uint32_t id : i.reads) defined &= x.frame->defined[id];
  return x.mask & ~defined;
}

void check_guard(const Execution& x, const Instruction& i) {
  const LaneMask undefined = x.group & ~x.frame->defined[i.guard_register];
  if (undefined != 0) x.fail("read of an undefined predicate register", first_lane(undefined));
}

void check_registers(const Execution& x, const Instruction& i) {
  const LaneMask undefined = undefined_lanes(x, i);
  if (undefined == 0 || i.copies) return;
  x.fail("read of an undefined register (never written, or a wgmma accumulator in flight)",
         first_lane(undefined));
}

void define_results(const Execution& x, const Instruction& i, LaneMask mask, LaneMask undefined) {
  for (const uint32_t id : i.writes) {
    LaneMask& defined = x.frame->defined[id];
    defined = (defined | mask) & ~undefined;
  }
}

void run_profiled(Execution& x, const Instruction& i) {
  Profile& profile = *i.profile;
  if (profile.guard >= 0) {
    const LaneMask guard = *x.at<LaneMask>({static_cast<uint32_t>(profile.guard), Bank::kFrame});
    x.mask &= i.is_guard_negated ? ~guard : guard;
  }
  if (x.mask != x.group) ++profile.held;
  if (x.mask == 0) return;
  ++profile.runs;
  profile.run(x, i);
}

}  // namespace

void profile(Function* function) {
  function->profiles.resize(function->code.size());
  for (size_t s = 0; s < function->code.size(); ++s) {
    Instruction& i = function->code[s];
    i.profile = &function->profiles[s];
    i.profile->guard = std::exchange(i.guard, -1);
    i.profile->run = std::exchange(i.run, run_profiled);
  }
}

void run_group(Execution* execution, int turn) {
  Execution& x = *execution;
  const Instruction* code = x.frame->function.code.data();
  // Profiled instructions look at their guards themselves.
  const bool checks_registers = x.machine.options.registers && !x.machine.options.profile;
  uint64_t instructions = 0;
  uint64_t lanes = 0;
  do {
    const Instruction& i = code[x.pc];
    x.here = &i;
    x.next = x.pc + 1;
    x.mask = x.group;
    if (i.guard >= 0) {
      const LaneMask guard = *x.at<LaneMask>({static_cast<uint32_t>(i.guard), Bank::kFrame});
      x.mask &= i.is_guard_negated ? ~guard : guard;
      if (checks_registers) check_guard(x, i);
    }
    if (x.mask != 0) {
      const LaneMask mask = x.mask;
      if (checks_registers) {
        check_registers(x, i);
        const LaneMask undefined = i.copies ? undefined_lanes(x, i) : 0;
        define_results(x, i, mask, undefined);
      }
      i.run(x, i);
      lanes += static_cast<uint64_t>(std::popcount(mask));
    }
    ++instructions;
    x.pc = x.next;
  } while (x.pc < x.limit && --turn > 0);
  for_each_lane(x.group, [&](int lane) { x.warp->pc[lane] = x.pc; });
  x.machine.instructions += instructions;
  x.machine.counters.warp_instructions += instructions;
  x.machine.counters.thread_instructions += lanes;
}

}  // namespace emulator
