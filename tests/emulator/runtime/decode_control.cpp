// Control flow: bra, brx.idx, call, ret, exit, trap, nanosleep.
#include <cstring>

#include "runtime/decode.h"
#include "runtime/gather.h"
#include "runtime/ops.h"

namespace emulator {
namespace {

void run_branch(Execution& x, const Instruction& i) {
  if (x.mask == x.group) {
    x.next = i.target;
  } else {
    x.branch_off(x.mask, i.target);
  }
}

void run_indexed_branch(Execution& x, const Instruction& i) {
  const uint32_t* index = x.at<uint32_t>(i.a);
  for_each_lane(x.mask, [&](int lane) {
    if (index[lane] >= i.targets.size()) x.fail("index of brx.idx out of range", lane);
    x.branch_off(lane_bit(lane), i.targets[index[lane]]);
  });
}

// ---- calls -------------------------------------------------------------------------------------

// sources of a call: offsets of the arguments in the caller's scratch memory; option: of the
// result.
void run_call(Execution& x, const Instruction& i) {
  const Function& callee = *i.callee;
  const Function& caller = x.frame->function;
  auto frame = std::make_unique<Frame>(callee, x.frame, x.mask);
  frame->return_pc = x.next;
  frame->call = &i;
  frame->params.resize(callee.param_bytes * kLanes);
  for_each_lane(x.mask, [&](int lane) {
    const char* scratch =
        x.frame->scratch.data() + caller.scratch_bytes * static_cast<size_t>(lane);
    char* params = frame->params.data() + callee.param_bytes * static_cast<size_t>(lane);
    for (size_t p = 0; p < callee.params.size(); ++p) {
      std::memcpy(params + callee.params[p].offset, scratch + i.sources[p].offset,
                  callee.params[p].bytes);
    }
    x.warp->frame[lane] = frame.get();
  });
  x.branch_off(x.mask, 0);
  x.reschedule();
  x.warp->frames.push_back(std::move(frame));
}

void return_lanes(Execution& x, LaneMask lanes) {
  Frame* frame = x.frame;
  const Function& callee = frame->function;
  const Function& caller = frame->caller->function;
  for_each_lane(lanes, [&](int lane) {
    if (callee.result_bytes != 0 && frame->call->option >= 0) {
      std::memcpy(frame->caller->scratch.data() + caller.scratch_bytes * static_cast<size_t>(lane) +
                      static_cast<size_t>(frame->call->option),
                  frame->scratch.data() + callee.scratch_bytes * static_cast<size_t>(lane) +
                      callee.result_offset,
                  callee.result_bytes);
    }
    x.warp->frame[lane] = frame->caller;
  });
  x.branch_off(lanes, frame->return_pc);
  x.reschedule();
  frame->lanes &= ~lanes;
  if (frame->lanes == 0) {
    std::erase_if(x.warp->frames, [&](const auto& kept) { return kept.get() == frame; });
  }
}

void exit_lanes(Execution& x, LaneMask lanes) {
  for_each_lane(lanes, [&](int lane) {
    if (!x.warp->copies[lane].copies.empty()) {
      x.fail("thread exits with cp.async that it did not wait for", lane);
    }
  });
  x.warp->alive &= ~lanes;
  x.warp->ready &= ~lanes;
  x.group &= ~lanes;
  if (x.group == 0) x.reschedule();
  x.block->alive -= std::popcount(lanes);
  x.block->cluster->barrier.arrived -= std::popcount(lanes & x.warp->cluster_arrived);
  x.warp->cluster_arrived &= ~lanes;
  end_cluster_phase(x.machine, x.block->cluster);
  recheck_gatherings(x.warp);
}

void run_return(Execution& x, const Instruction&) {
  x.frame->caller == nullptr ? exit_lanes(x, x.mask) : return_lanes(x, x.mask);
}
void run_exit(Execution& x, const Instruction&) { exit_lanes(x, x.mask); }

void run_assert_fail(Execution& x, const Instruction& i) {
  const int lane = first_lane(x.mask);
  uint64_t message = 0;
  std::memcpy(&message,
              x.frame->scratch.data() +
                  x.frame->function.scratch_bytes * static_cast<size_t>(lane) + i.sources[0].offset,
              sizeof message);
  x.fail("assert(" + std::string(reinterpret_cast<const char*>(message)) + ")", lane,
         FaultKind::kAssert);
}

void run_nothing(Execution&, const Instruction&) {}
void run_sleep(Execution& x, const Instruction&) { x.yield(); }
void run_trap(Execution& x, const Instruction&) { x.fail("trap"); }

// ---- decoding ----------------------------------------------------------------------------------

// call (result), function, (arguments); the lists may be missing.
void decode_call(Decoder& decoder, const ptx::Statement& s, Instruction* i) {
  using Kind = ptx::Operand::Kind;
  auto scratch_offset = [&](const ptx::Operand& operand) {
    Decoder::ParamSpace space{};
    return static_cast<uint32_t>(decoder.param(operand.name, s.scope, &space));
  };
  i->option = -1;
  std::string name;
  for (const ptx::Operand& operand : s.operands) {
    if (operand.kind == Kind::kSymbol) {
      name = operand.name;
    } else if (operand.kind == Kind::kVector && name.empty()) {
      i->option = static_cast<int32_t>(scratch_offset(operand.elements.at(0)));
    } else if (operand.kind == Kind::kVector) {
      for (const ptx::Operand& argument : operand.elements) {
        i->sources.push_back({scratch_offset(argument), Bank::kFrame});
      }
    }
  }
  if (name == "__assertfail") {
    i->run = run_assert_fail;
  } else if (name == "vprintf") {
    i->run = run_nothing;
  } else {
    i->callee = decoder.callee(name);
    if (i->callee == nullptr) throw Unsupported{"call of " + name};
    i->run = run_call;
  }
}

void decode_branch(Decoder& decoder, const ptx::Statement& s, Instruction* i) {
  if (s.has("idx")) {
    i->run = run_indexed_branch;
    i->a = decoder.source(s.operands.at(0), 32);
    const auto& tables = decoder.source_function().branch_tables;
    const auto table = tables.find(s.operands.at(1).name);
    if (table == tables.end()) throw Unsupported{"branch table"};
    for (const std::string& name : table->second) {
      i->targets.push_back(decoder.label(name, s.scope));
    }
    return;
  }
  i->run = run_branch;
  i->target = decoder.label(s.operands.at(0).name, s.scope);
}

}  // namespace

bool decode_control(Decoder& decoder, const ptx::Statement& s, Instruction* i) {
  const std::string& opcode = s.parts[0];
  if (opcode == "bra" || opcode == "brx") {
    decode_branch(decoder, s, i);
  } else if (opcode == "call") {
    decode_call(decoder, s, i);
  } else if (opcode == "ret") {
    i->run = run_return;
  } else if (opcode == "exit") {
    i->run = run_exit;
  } else if (opcode == "trap" || opcode == "brkpt") {
    i->run = run_trap;
  } else if (opcode == "nanosleep") {
    i->run = run_sleep;
  } else if (opcode == "griddepcontrol" || opcode == "setmaxnreg" || opcode == "pmevent") {
    i->run = run_nothing;
  } else {
    return false;
  }
  return true;
}

}  // namespace emulator
