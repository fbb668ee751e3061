// Barriers of the block: bar / barrier .sync, .arrive and .red, with and without thread counts; and
// the barrier of the cluster.
#include <utility>

#include "runtime/decode.h"
#include "runtime/ops.h"

namespace emulator {
namespace {

enum Kind { kSync, kArrive, kCount, kAnd, kOr };

void give_result(const BarrierWaiter& waiter, uint32_t count, int expected) {
  const Instruction& i = *waiter.instruction;
  if (i.option < kCount) return;
  char* registers = waiter.frame->registers.data() + i.d.offset;
  if (i.option == kCount) {
    for_each_lane(waiter.lanes,
                  [&](int lane) { reinterpret_cast<uint32_t*>(registers)[lane] = count; });
    return;
  }
  const bool holds = i.option == kAnd ? count == static_cast<uint32_t>(expected) : count > 0;
  LaneMask& predicate = *reinterpret_cast<LaneMask*>(registers);
  predicate = (predicate & ~waiter.lanes) | (holds ? waiter.lanes : 0);
}

void complete(Execution& x, Barrier* barrier, int expected, bool is_for_all) {
  BlockClocks& clocks = *x.block->clocks;
  const bool is_checked = x.machine.options.race;
  if (is_checked && is_for_all) clocks.barrier_of_all();
  for (const BarrierWaiter& waiter : barrier->waiters) {
    if (is_checked && !is_for_all) {
      for_each_lane(waiter.lanes,
                    [&](int lane) { clocks.leave(waiter.warp->index, lane, barrier->meeting); });
    }
    give_result(waiter, barrier->count, expected);
    waiter.warp->ready |= waiter.lanes;
  }
  *barrier = {};
}

// sources: [0] barrier, [1] count of threads where one is given; a: predicate of .red.
void run_barrier(Execution& x, const Instruction& i) {
  const bool is_for_all = i.sources.size() == 1;
  const int first = first_lane(x.mask);
  const uint32_t number = x.at<uint32_t>(i.sources[0])[first];
  const int expected =
      is_for_all ? x.block->threads : static_cast<int>(x.at<uint32_t>(i.sources[1])[first]);
  if (number >= x.block->barriers.size()) x.fail("no such barrier");
  if (expected <= 0 || expected % kLanes != 0) {
    if (!is_for_all) x.fail("thread count of a barrier is not a multiple of 32");
  }
  Barrier& barrier = x.block->barriers[number];
  ++x.machine.counters.barriers;
  if (is_for_all && barrier.instruction != nullptr && barrier.instruction != &i) {
    x.fail("divergent barrier: meets " +
           x.frame->function.module->describe(*barrier.instruction->statement));
  }
  if (is_for_all) barrier.instruction = &i;
  barrier.arrived += std::popcount(x.mask);
  if (barrier.arrived > expected) x.fail("more threads arrive at a barrier than it counts");
  if (i.option >= kCount) {
    const LaneMask holds = i.is_c_negated ? ~x.predicate(i.a) : x.predicate(i.a);
    barrier.count += static_cast<uint32_t>(std::popcount(holds & x.mask));
  }
  if (x.machine.options.race && !is_for_all) {
    for_each_lane(
        x.mask, [&](int lane) { x.block->clocks->arrive(x.warp->index, lane, &barrier.meeting); });
  }
  if (i.option != kArrive) {
    barrier.waiters.push_back({x.warp, x.mask, x.frame, &i});
    x.block_lanes(x.mask);
  }
  if (barrier.arrived == expected) complete(x, &barrier, expected, is_for_all);
}

// ---- of the cluster

enum ClusterOption { kRelaxed = 1 };

void run_cluster_arrive(Execution& x, const Instruction& i) {
  Warp& warp = *x.warp;
  if ((x.mask & (warp.cluster_arrived | warp.cluster_passed)) != 0) {
    x.fail("arrives at the cluster's barrier again without having waited");
  }
  Cluster& cluster = *x.block->cluster;
  ++x.machine.counters.barriers;
  if (x.machine.options.race && i.option != kRelaxed) {
    for_each_lane(x.mask, [&](int lane) {
      cluster.barrier.pending.merge(x.block->clocks->publish(warp.index, lane, false));
    });
  }
  warp.cluster_arrived |= x.mask;
  cluster.barrier.arrived += std::popcount(x.mask);
  end_cluster_phase(x.machine, &cluster);
  x.yield();
}

void pass(const Machine& machine, const Published& published, Warp* warp, LaneMask lanes) {
  warp->cluster_passed &= ~lanes;
  if (!machine.options.race) return;
  for_each_lane(lanes,
                [&](int lane) { warp->block->clocks->acquire(warp->index, lane, published); });
}

void run_cluster_wait(Execution& x, const Instruction& i) {
  Warp& warp = *x.warp;
  if ((x.mask & ~(warp.cluster_arrived | warp.cluster_passed)) != 0) {
    x.fail("waits at the cluster's barrier without having arrived");
  }
  auto& barrier = x.block->cluster->barrier;
  pass(x.machine, barrier.complete, &warp, x.mask & warp.cluster_passed);
  const LaneMask waiting = x.mask & warp.cluster_arrived;
  if (waiting == 0) return;
  barrier.waiters.push_back({&warp, waiting, x.frame, &i});
  x.block_lanes(waiting);
}

void decode_cluster_barrier(const ptx::Statement& s, Instruction* i) {
  i->run = s.has("arrive") ? run_cluster_arrive : run_cluster_wait;
  i->option = s.has("relaxed") ? kRelaxed : 0;
}

}  // namespace

void end_cluster_phase(const Machine& machine, Cluster* cluster) {
  auto& barrier = cluster->barrier;
  if (barrier.arrived == 0 || barrier.arrived != cluster->alive()) return;
  barrier.arrived = 0;
  barrier.complete = std::exchange(barrier.pending, {});
  for (const auto& block : cluster->blocks) {
    for (const auto& warp : block->warps) {
      warp->cluster_passed |= std::exchange(warp->cluster_arrived, 0);
    }
  }
  for (const BarrierWaiter& waiter : std::exchange(barrier.waiters, {})) {
    pass(machine, barrier.complete, waiter.warp, waiter.lanes);
    waiter.warp->ready |= waiter.lanes;
  }
}

bool decode_barrier(Decoder& decoder, const ptx::Statement& s, Instruction* i) {
  if (s.parts[0] != "bar" && s.parts[0] != "barrier") return false;
  if (s.has("cluster")) {
    decode_cluster_barrier(s, i);
    return true;
  }
  i->run = run_barrier;
  size_t operand = 0;
  size_t last = s.operands.size();
  i->option = s.has("arrive") ? kArrive : kSync;
  if (s.has("red")) {
    i->option = s.has("popc") ? kCount : s.has("and") ? kAnd : kOr;
    decoder.results(s.operands.at(operand++), i->option == kCount ? 32 : 1);
    i->a = decoder.predicate(s.operands.at(--last));
    i->is_c_negated = s.operands.at(last).is_negated;
  }
  for (; operand < last; ++operand) {
    i->sources.push_back(decoder.source(s.operands[operand], 32));
  }
  if (i->sources.empty()) throw Unsupported{"operands"};
  return true;
}

}  // namespace emulator
