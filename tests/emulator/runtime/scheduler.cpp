// Which blocks, warps and lanes run when: all of it a function of the seed.
#include <algorithm>
#include <cstring>
#include <utility>

#include "runtime/machine.h"
#include "runtime/specials.h"
#include "runtime/wgmma.h"

namespace emulator {
namespace {

constexpr int kLongTurn = 4096;  // instructions
constexpr int kNoLimit = 1 << 30;
constexpr size_t kArenaAlignment = 1024;

// ---- blocks ------------------------------------------------------------------------------------

void start_warps(Machine& machine, Block* block) {
  const Function& kernel = *machine.kernel;
  const int warps = (block->threads + kLanes - 1) / kLanes;
  for (int w = 0; w < warps; ++w) {
    const int lanes = std::min(kLanes, block->threads - w * kLanes);
    const LaneMask mask = lanes == kLanes ? kAllLanes : lane_bit(lanes) - 1;
    auto warp = std::make_unique<Warp>(block, w, mask);
    warp->frames.push_back(std::make_unique<Frame>(kernel, nullptr, mask));
    warp->frame.fill(warp->frames.back().get());
    warp->specials = special_registers(machine, *block, w);
    switch (machine.mode) {
      case ScheduleMode::kForward:
        warp->priority = 1'000'000u - static_cast<uint32_t>(w);
        break;
      case ScheduleMode::kReverse:
        warp->priority = static_cast<uint32_t>(w);
        break;
      default:
        warp->priority = machine.random();
    }
    block->warps.push_back(std::move(warp));
  }
}

// Shared memory: the kernel's objects and the dynamic part, with gaps between them, filled with
// NaN or with huge numbers.
void start_shared_memory(Machine& machine, Block* block) {
  block->shared = machine.kernel->shared;
  block->shared.push_back({machine.kernel->dynamic_offset, machine.dynamic_shared_bytes});
  const size_t bytes = machine.kernel->dynamic_offset + machine.dynamic_shared_bytes;
  const size_t padded = (bytes + kArenaAlignment) / kArenaAlignment * kArenaAlignment;
  block->arena = static_cast<char*>(std::aligned_alloc(kArenaAlignment, padded));
  std::memset(block->arena, machine.random.one_in(2) ? 0xFF : 0x7F, padded);
  if (machine.options.race) block->shadow = std::make_unique<Shadow>(bytes, true);
}

std::unique_ptr<Block> start_block(Machine& machine, Cluster* cluster, uint64_t number, int slot) {
  auto block = std::make_unique<Block>();
  const Dim3& grid = machine.grid;
  block->cluster = cluster;
  block->rank = static_cast<uint32_t>(cluster->blocks.size());
  block->number = static_cast<uint32_t>(number);
  block->index = {static_cast<uint32_t>(number % grid.x),
                  static_cast<uint32_t>(number / grid.x % grid.y),
                  static_cast<uint32_t>(number / grid.x / grid.y)};
  block->slot = slot;
  block->threads = static_cast<int>(machine.block.count());
  block->alive = block->threads;
  block->clocks =
      std::make_unique<BlockClocks>(block->number, block->threads, machine.launch_floor);
  start_shared_memory(machine, block.get());
  start_warps(machine, block.get());
  return block;
}

// The blocks of a cluster start together; slots count blocks.
std::unique_ptr<Cluster> start_cluster(Machine& machine, uint64_t number, size_t slot) {
  const uint64_t size = machine.cluster_blocks;
  auto cluster = std::make_unique<Cluster>();
  for (uint64_t rank = 0; rank < size; ++rank) {
    cluster->blocks.push_back(start_block(machine, cluster.get(), number * size + rank,
                                          static_cast<int>(slot * size + rank)));
  }
  return cluster;
}

void end_cluster(Machine& machine, std::unique_ptr<Cluster>* cluster) {
  if (*cluster == nullptr) return;
  for (const auto& block : (*cluster)->blocks) {
    machine.highest_clock = std::max(machine.highest_clock, block->clocks->highest_clock());
    std::free(block->arena);
  }
  cluster->reset();
}

void check_bulk_copies(const Machine& machine, const Block& block) {
  for (const BulkCopy& copy : machine.engine) {
    if (copy.block != &block) continue;
    throw Fault(FaultKind::kFailure, "block exits with an unfinished asynchronous copy");
  }
}

// Whether the end of a block comes after all accesses of other blocks to its shared memory, in any
// schedule.
void check_visits(const Block& block) {
  for (const auto& [warp, clocks] : block.visits) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint32_t clock = clocks[static_cast<size_t>(lane)];
      if (clock == 0 || block.clocks->any_knows(clock, warp, lane)) continue;
      const uint32_t thread = warp % kLanes * kLanes + static_cast<uint32_t>(lane);
      throw Fault(FaultKind::kFailure, "block " + std::to_string(block.number) +
                                           " exits while thread " + std::to_string(thread) +
                                           " of block " + std::to_string(warp / kLanes) +
                                           " may still access its shared memory");
    }
  }
}

// Looks at blocks whose threads have all exited; their shared memory stays as long as the cluster.
bool has_ended(Machine& machine, const Cluster& cluster) {
  bool is_done = true;
  for (const auto& block : cluster.blocks) {
    if (block->alive == 0 && !block->has_ended) {
      check_bulk_copies(machine, *block);
      check_visits(*block);
      block->has_ended = true;
    }
    is_done = is_done && block->has_ended;
  }
  return is_done;
}

// Hardware promises no order of blocks.
std::vector<uint32_t> shuffled_order(Machine& machine, uint64_t blocks) {
  std::vector<uint32_t> order(blocks);
  for (uint32_t i = 0; i < blocks; ++i) {
    const uint32_t j = machine.random.below(i + 1);
    order[i] = order[j];
    order[j] = i;
  }
  return order;
}

// ---- choosing what runs ------------------------------------------------------------------------

template <class F>
void for_each_block(const Machine& machine, F f) {
  for (const auto& cluster : machine.resident) {
    if (cluster == nullptr) continue;
    for (const auto& block : cluster->blocks) f(*block);
  }
}

Warp* pick_warp(Machine& machine, bool is_uniform) {
  Warp* best = nullptr;
  uint32_t best_priority = 0;
  for_each_block(machine, [&](const Block& block) {
    for (const auto& warp : block.warps) {
      if (warp->ready == 0) continue;
      const uint32_t priority = is_uniform ? machine.random() : warp->priority;
      if (best != nullptr && priority <= best_priority) continue;
      best = warp.get();
      best_priority = priority;
    }
  });
  if (best != nullptr && machine.mode == ScheduleMode::kRandomPriorities &&
      machine.random.one_in(64)) {
    best->priority = machine.random();
  }
  return best;
}

// The ready lanes that are at the same place as one of them.
LaneMask lanes_beside(const Warp& warp, int lane) {
  LaneMask result = 0;
  for_each_lane(warp.ready, [&](int other) {
    if (warp.pc[other] == warp.pc[lane] && warp.frame[other] == warp.frame[lane]) {
      result |= lane_bit(other);
    }
  });
  return result;
}

int random_lane(Machine& machine, LaneMask lanes) {
  for (uint32_t skip = machine.random.below(static_cast<uint32_t>(std::popcount(lanes))); skip > 0;
       --skip) {
    lanes &= lanes - 1;
  }
  return first_lane(lanes);
}

// The lane furthest behind: running it first lets diverged lanes meet again.
int lane_behind(const Warp& warp) {
  int best = first_lane(warp.ready);
  for_each_lane(warp.ready, [&](int lane) {
    const int deeper = warp.frame[lane]->depth - warp.frame[best]->depth;
    if (deeper > 0 || (deeper == 0 && warp.pc[lane] < warp.pc[best])) best = lane;
  });
  return best;
}

struct Turn {
  LaneMask lanes;
  int limit;
  int instructions;
};

Turn pick_lanes(Machine& machine, Warp* warp) {
  const bool has_yielded = std::exchange(warp->has_yielded, false);
  Turn turn{lanes_beside(*warp, first_lane(warp->ready)), kNoLimit, kLongTurn};
  if (turn.lanes != warp->ready) {
    const bool is_random = machine.random.one_in(has_yielded ? 2 : 16);
    const int lane = is_random ? random_lane(machine, warp->ready) : lane_behind(*warp);
    turn.lanes = lanes_beside(*warp, lane);
    if (is_random) {
      turn.instructions = 64;
    } else {
      for_each_lane(warp->ready & ~turn.lanes, [&](int other) {
        if (warp->frame[other] != warp->frame[lane]) return;
        turn.limit = std::min(turn.limit, warp->pc[other]);
      });
    }
  } else if (machine.mode != ScheduleMode::kForward && machine.random.one_in(32)) {
    // Lanes of a warp may run apart without any branch.
    const LaneMask some = turn.lanes & machine.random();
    if (some != 0) turn = {some, kNoLimit, 1 + static_cast<int>(machine.random.below(16))};
  }
  return turn;
}

void run_turn(Machine& machine, Warp* warp) {
  const Turn turn = pick_lanes(machine, warp);
  Frame* frame = warp->frame[first_lane(turn.lanes)];
  Execution x{.machine = machine,
              .block = warp->block,
              .warp = warp,
              .frame = frame,
              .banks = {frame->registers.data(),
                        const_cast<char*>(frame->function.constants.data()), warp->specials.data()},
              .group = turn.lanes,
              .mask = 0,
              .pc = warp->pc[first_lane(turn.lanes)],
              .next = 0,
              .limit = turn.limit};
  try {
    run_group(&x, turn.instructions);
  } catch (const Fault& fault) {
    const int lane = fault.lane >= 0 ? fault.lane : first_lane(x.mask);
    const Dim3& block = warp->block->index;
    throw Fault(fault.kind, std::string(fault.what()) + " at " +
                                frame->function.module->describe(*x.here->statement) + " [block " +
                                std::to_string(block.x) + "," + std::to_string(block.y) + "," +
                                std::to_string(block.z) + " thread " +
                                std::to_string(x.thread(lane)) + "] (seed " +
                                std::to_string(machine.options.seed) + ")");
  }
}

[[noreturn]] void report_deadlock(const Machine& machine) {
  std::string text = "deadlock:";
  bool is_shown = false;
  for_each_block(machine, [&](const Block& block) {
    if (is_shown || block.alive == 0) return;
    is_shown = true;
    int shown = 0;
    for (const auto& warp : block.warps) {
      for_each_lane(warp->alive, [&](int lane) {
        if (shown++ >= 4) return;
        text += " thread " + std::to_string(warp->index * kLanes + lane) + " waits at " +
                warp->frame[lane]->function.module->describe(*warp->here[lane]->statement) + ";";
      });
    }
    text += " (" + std::to_string(block.alive) + " of " + std::to_string(block.threads) +
            " threads alive)";
  });
  throw Fault(FaultKind::kTimeout, text + " (seed " + std::to_string(machine.options.seed) + ")");
}

}  // namespace

void advance_engine(Machine* machine) {
  auto& engine = machine->engine;
  if (engine.empty()) return;
  const auto place = engine.begin() + machine->random.below(static_cast<uint32_t>(engine.size()));
  const BulkCopy copy = std::move(*place);
  engine.erase(place);
  copy.run();
}

uint32_t run_launch(Machine* launched) {
  Machine& machine = *launched;
  const uint64_t clusters = machine.grid.count() / machine.cluster_blocks;
  const std::vector<uint32_t> order = shuffled_order(machine, clusters);
  uint64_t started = 0;
  const auto most = static_cast<size_t>(machine.options.resident);
  machine.resident.resize(std::max<size_t>(most / machine.cluster_blocks, 1));
  try {
    for (;;) {
      bool is_running = false;
      for (size_t slot = 0; slot < machine.resident.size(); ++slot) {
        auto& cluster = machine.resident[slot];
        if (cluster != nullptr && has_ended(machine, *cluster)) end_cluster(machine, &cluster);
        if (cluster == nullptr && started < clusters) {
          cluster = start_cluster(machine, order[started++], slot);
        }
        is_running = is_running || cluster != nullptr;
      }
      if (!is_running) break;
      const bool is_uniform = machine.mode == ScheduleMode::kUniform || machine.spins % 2 == 1;
      Warp* warp = pick_warp(machine, is_uniform);
      const bool is_eager = machine.options.async != AsyncMode::kLate && machine.random.one_in(16);
      if (warp == nullptr || is_eager) advance_engine(&machine);
      if (warp == nullptr && (warp = pick_warp(machine, true)) == nullptr) {
        if (machine.engine.empty()) report_deadlock(machine);
        continue;
      }
      run_turn(machine, warp);
      if (machine.instructions > machine.options.max_instructions) {
        throw Fault(FaultKind::kTimeout, "livelock: too many instructions in one launch");
      }
    }
  } catch (...) {
    for (auto& cluster : machine.resident) end_cluster(machine, &cluster);
    throw;
  }
  return machine.highest_clock;
}

}  // namespace emulator
