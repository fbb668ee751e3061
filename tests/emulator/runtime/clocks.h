// Who knows of whose accesses: clocks and the happens-before order of one launch.
//
// Every warp has a clock that goes up when one of its threads publishes what it did. An access
// carries the clock of its warp and its lane. A thread knows of an access of its block when
//   - it is its own, or its clock is at most the block's floor (raised by barriers of all threads)
//     or, within a warp, the warp's floor (raised by __syncwarp of all lanes), or
//   - the thread's own table says so (filled by other barriers, mbarriers and flags).
// Of other blocks it knows what snapshots say that it acquired through strong operations.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "runtime/lanes.h"

namespace emulator {

struct Snapshot;
// What is known of other blocks, by block; immutable once shared.
using Foreign = std::map<uint32_t, std::shared_ptr<const Snapshot>>;

// What a thread knew of its block, and of others, when it published.
struct Snapshot {
  uint32_t floor = 0;
  std::vector<uint32_t> threads;
};
using Clocks = std::vector<uint32_t>;  // by thread of the block; one more for the bulk copy engine

// What one thread, barrier or memory location publishes: about all blocks, its own included.
struct Published {
  Foreign blocks;
  bool is_block_only = false;  // by fences and operations of block scope

  bool empty() const { return blocks.empty(); }
  void merge(const Published& other);
};
using PublishedPtr = std::shared_ptr<const Published>;

struct ThreadClocks {
  Clocks threads;                          // empty: nothing beyond the floors
  std::shared_ptr<const Foreign> foreign;  // null: nothing
  PublishedPtr fence;                      // what the last release fence published
  Published pending;                       // read by relaxed operations, valid after a fence
  // The last fence.proxy.async: its clock, and what the thread knew of its block then.
  uint32_t proxy_fence = 0;
  uint32_t fenced_floor = 0;
  Clocks fenced;  // of lane 0 only: matrix instructions read as that lane
};

// What arrivals at a barrier or mbarrier have published in one phase.
struct Meeting {
  Clocks threads;
  std::shared_ptr<const Foreign> foreign;
};

class BlockClocks {
 public:
  // launch_floor: clocks up to it belong to earlier launches.
  BlockClocks(uint32_t block, int threads, uint32_t launch_floor);

  uint32_t block() const { return block_; }
  uint32_t floor() const { return floor_; }
  uint32_t launch_floor() const { return launch_floor_; }
  uint32_t warp_id(int warp) const { return block_ * kLanes + static_cast<uint32_t>(warp); }
  uint32_t clock(int warp) const { return warps_[warp].clock; }
  uint32_t highest_clock() const;
  uint32_t engine_clock() const { return engine_clock_; }
  ThreadClocks& thread(int warp, int lane) { return threads_[thread_index(warp, lane)]; }

  // Whether the thread knows of an access. warp_id as in Cell.
  bool knows(int warp, int lane, uint32_t access_clock, uint32_t access_warp,
             int access_lane) const {
    if (access_clock <= launch_floor_) return true;
    if (access_warp / kLanes != block_)
      return knows_foreign(warp, lane, access_clock, access_warp, access_lane);
    if (access_clock <= floor_) return true;
    const auto other = static_cast<int>(access_warp % kLanes);
    if (other == warp && (access_lane == lane || access_clock <= warps_[warp].floor)) return true;
    const Clocks& known = threads_[thread_index(warp, lane)].threads;
    return !known.empty() && known[thread_index(other, access_lane)] >= access_clock;
  }
  // Of the bulk copy engine of a block, which may be another one.
  bool knows_engine(int warp, int lane, uint32_t clock, uint32_t block) const;

  // ---- what orders accesses
  void barrier_of_all();
  void sync_warp(int warp, LaneMask lanes, bool is_whole_warp);
  void arrive(int warp, int lane, Meeting* meeting);
  void leave(int warp, int lane, const Meeting& meeting);
  // A bulk copy that a thread issued at `issued` completes into a meeting.
  void engine_arrive(const Meeting& issued, Meeting* meeting);
  // An arrival that waited for copies: what was known when the instruction was issued.
  static void late_arrive(const Meeting& issued, Meeting* meeting);
  Published publish(int warp, int lane, bool is_block_only);
  void acquire(int warp, int lane, const Published& published);
  void fence(int warp, int lane, bool is_block_only);
  void proxy_fence(int warp, int lane);
  // Whether a thread knows anything of another block: only then has that one surely started.
  bool has_met(int warp, int lane, uint32_t block) const;
  // Whether any thread knows of an access.
  bool any_knows(uint32_t access_clock, uint32_t access_warp, int access_lane) const;
  // Whether the writer of an access, or the warp that reads it as lane 0, has fenced since.
  bool is_proxy_fenced(int reader_warp, uint32_t access_clock, uint32_t access_warp,
                       int access_lane) const;
  uint32_t next_engine_clock() { return ++engine_clock_; }

 private:
  struct WarpClock {
    uint32_t clock;
    uint32_t floor;
  };
  static int thread_index(int warp, int lane) { return warp * kLanes + lane; }
  Clocks full_clocks(int warp, int lane) const;
  bool knows_foreign(int warp, int lane, uint32_t access_clock, uint32_t access_warp,
                     int access_lane) const;
  void learn(ThreadClocks* thread, const Clocks& clocks);

  uint32_t block_;
  uint32_t launch_floor_;
  uint32_t floor_;
  uint32_t engine_clock_ = 0;
  uint32_t engine_floor_ = 0;
  bool is_simple_ = true;  // no thread knows more than the floors say
  std::vector<WarpClock> warps_;
  std::vector<ThreadClocks> threads_;
};

// The union of what two threads know of other blocks.
std::shared_ptr<const Foreign> merge(const std::shared_ptr<const Foreign>& a,
                                     const std::shared_ptr<const Foreign>& b);

}  // namespace emulator
