// The state of one launch: blocks, warps, frames of registers.
//
// There are no operating-system threads and no stacks: a thread is a lane of a warp with a program
// counter and a frame. Lanes of a warp with equal counters run each instruction together.
#pragma once

#include <array>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "runtime/clocks.h"
#include "runtime/fault.h"
#include "runtime/lanes.h"
#include "runtime/memory.h"
#include "runtime/options.h"
#include "runtime/program.h"

namespace emulator {

struct Block;
struct Cluster;
struct Machine;

struct Dim3 {
  uint32_t x = 1, y = 1, z = 1;
  uint64_t count() const { return uint64_t{x} * y * z; }
};

// One activation of a function by some lanes of a warp.
struct Frame {
  Frame(const Function& of, Frame* called_by, LaneMask called_lanes);

  const Function& function;
  Frame* caller;  // null for a kernel
  int return_pc = 0;
  const Instruction* call = nullptr;
  LaneMask lanes;  // that have not returned
  std::vector<char> registers;
  std::vector<LaneMask> defined;  // lanes, by register
  std::vector<char> scratch;      // lane after lane
  std::vector<char> params;       // lane after lane; empty for a kernel
  std::vector<char> local;        // lane after lane
  int depth;
};

// A cp.async on its way.
struct AsyncCopy {
  uint32_t destination;  // in shared memory
  const char* source;
  uint8_t bytes;
  uint8_t valid;  // the rest becomes zero
  bool is_done;
  bool has_snapshot;  // of the source when the copy was issued
  std::array<char, 16> snapshot;
};

struct AsyncCopies {
  std::vector<AsyncCopy> copies;     // oldest first
  std::deque<uint32_t> group_sizes;  // committed groups
  uint32_t open = 0;                 // copies of no group yet
};

// The copy takes place, if it has not yet.
void complete_copy(const Block& block, AsyncCopy* copy);

// Lanes that wait at one warp-wide instruction for the others of its member mask.
struct Gathering {
  const Instruction* instruction;
  Frame* frame;
  LaneMask members;
  LaneMask arrived;
};

struct WgmmaState;

struct Warp {
  Warp(Block* of, int number, LaneMask lanes);
  ~Warp();

  Block* block;
  int index;
  LaneMask alive;
  LaneMask ready;
  uint32_t priority = 0;
  std::array<int, kLanes> pc{};
  std::array<Frame*, kLanes> frame{};
  std::vector<std::unique_ptr<Frame>> frames;
  std::vector<char> specials;
  std::vector<Gathering> gatherings;
  std::array<const Instruction*, kLanes> here{};  // what a lane that is not ready waits at
  std::array<AsyncCopies, kLanes> copies;
  std::unique_ptr<WgmmaState> wgmma;
  // Lanes that have arrived at the cluster's barrier, in an open phase or in one that has ended,
  // and have not waited yet.
  LaneMask cluster_arrived = 0;
  LaneMask cluster_passed = 0;
  bool has_yielded = false;
};

// Lanes at a barrier, and where barrier.red leaves its result.
struct BarrierWaiter {
  Warp* warp;
  LaneMask lanes;
  Frame* frame;
  const Instruction* instruction;
};

struct Barrier {
  int arrived = 0;
  const Instruction* instruction = nullptr;
  uint32_t count = 0;  // of lanes whose predicate holds
  std::vector<BarrierWaiter> waiters;
  Meeting meeting;
};

struct Block {
  Cluster* cluster;
  uint32_t rank;  // in the cluster
  Dim3 index;
  uint32_t number;  // in the grid, x fastest
  int slot;
  int threads;
  int alive;
  std::vector<std::unique_ptr<Warp>> warps;
  std::array<Barrier, 16> barriers;
  char* arena;  // shared memory
  std::vector<SharedObject> shared;
  std::unique_ptr<Shadow> shadow;
  std::unique_ptr<BlockClocks> clocks;
  struct MbarrierMeetings {
    Meeting pending, complete;
  };
  std::unordered_map<uint32_t, MbarrierMeetings> mbarriers;  // by address
  std::unordered_map<const void*, PublishedPtr> flags;       // in shared memory
  // When threads of other blocks last accessed this one's shared memory: clocks of lanes, by warp.
  std::unordered_map<uint32_t, std::array<uint32_t, kLanes>> visits;
  bool has_ended = false;
};

// Blocks that run together and reach each other's shared memory: a single one where the launch
// names no clusters.
struct Cluster {
  std::vector<std::unique_ptr<Block>> blocks;  // by rank
  struct {
    int arrived = 0;
    Published pending, complete;
    std::vector<BarrierWaiter> waiters;
  } barrier;

  int alive() const {
    int result = 0;
    for (const auto& block : blocks) result += block->alive;
    return result;
  }
};

// Ends the phase of the cluster's barrier if all threads that have not exited have arrived.
void end_cluster_phase(const Machine& machine, Cluster* cluster);

// A cp.async.bulk on its way, or an arrival that waits for copies; run() completes it.
struct BulkCopy {
  const Block* block;
  std::function<void()> run;
};

enum class ScheduleMode { kUniform, kForward, kReverse, kRandomPriorities };

struct Machine {
  const Function* kernel;
  Dim3 grid;
  Dim3 block;
  uint32_t dynamic_shared_bytes;
  uint32_t cluster_blocks;
  std::vector<char> params;
  const Options& options;
  Counters& counters;
  GlobalMemory& memory;
  uint32_t launch_floor;  // race clocks up to it belong to earlier launches
  uint32_t highest_clock;
  Random random;
  ScheduleMode mode;
  uint64_t spins = 0;
  uint64_t instructions = 0;
  std::vector<std::unique_ptr<Cluster>> resident;
  std::vector<BulkCopy> engine;                         // not yet done
  std::unordered_map<const void*, PublishedPtr> flags;  // what global memory locations publish
};

// The lanes that run now, and what handlers of instructions may do.
struct Execution {
  Machine& machine;
  Block* block;
  Warp* warp;
  Frame* frame;
  std::array<char*, 3> banks;  // by Bank
  LaneMask group;              // lanes that run together
  LaneMask mask;               // those of them that the guard lets through
  int pc;
  int next;   // where the group goes on
  int limit;  // the group stops at or behind it
  const Instruction* here = nullptr;

  template <class T>
  T* at(Slot slot) const {
    return reinterpret_cast<T*>(banks[static_cast<size_t>(slot.bank)] + slot.offset);
  }
  LaneMask& predicate(Slot slot) const { return *at<LaneMask>(slot); }
  int thread(int lane) const { return warp->index * kLanes + lane; }

  // Lanes leave the group, to go on at a place when they are scheduled.
  void branch_off(LaneMask lanes, int target) {
    for_each_lane(lanes, [&](int lane) { warp->pc[lane] = target; });
    group &= ~lanes;
    limit = group == 0 ? 0 : std::min(limit, target);
  }
  // Lanes leave the group and wait until wake() is called for them; they go on at `next`.
  void block_lanes(LaneMask lanes) {
    for_each_lane(lanes, [&](int lane) {
      warp->pc[lane] = next;
      warp->here[lane] = here;
    });
    warp->ready &= ~lanes;
    group &= ~lanes;
    if (group == 0) limit = 0;
  }
  // Others get a turn after this instruction.
  void yield();
  void reschedule() { limit = 0; }

  [[noreturn]] void fail(const std::string& text, int lane = -1,
                         FaultKind kind = FaultKind::kFailure) const {
    throw Fault(kind, text, lane);
  }
};

// Lets a decoded function count how often its instructions run.
void profile(Function* function);

// Runs a group of lanes until it waits, yields, diverges or has had its turn.
void run_group(Execution* execution, int turn);

// Lets one bulk copy happen, if any is on its way.
void advance_engine(Machine* machine);

// A whole launch. Throws Fault; returns the highest race clock.
uint32_t run_launch(Machine* machine);

}  // namespace emulator
