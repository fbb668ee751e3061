// What a test may choose about the emulated device, and what it counts.
#pragma once

#include <cstdint>

namespace emulator {

enum class AsyncMode { kEarly, kLate, kRandom };  // when asynchronous copies take place

struct Options {
  uint64_t seed = 1;
  int resident = 2;  // blocks that run interleaved
  AsyncMode async = AsyncMode::kRandom;
  bool race = true;                         // check for races and undefined memory
  bool bounds = true;                       // global memory only inside registered ranges
  bool profile = false;                     // count how often each instruction runs
  bool registers = true;                    // report reads of undefined registers
  uint64_t max_spins = 200'000;             // scheduling points of one launch
  uint64_t max_instructions = 100'000'000;  // of warps, of one launch
  int multiprocessors = 2;
  int occupancy = 2;   // most blocks on one multiprocessor
  int neighbours = 0;  // multiprocessors that a cluster may share; 0: all of them
  int compute_capability = 90;
};

struct Counters {
  uint64_t launches = 0;
  uint64_t warp_instructions = 0;
  uint64_t thread_instructions = 0;
  uint64_t mma_macs = 0;
  uint64_t async_copies = 0;
  uint64_t matrix_loads = 0;          // 8 x 8 matrices by ldmatrix
  uint64_t bank_conflict_phases = 0;  // of ldmatrix, beyond the unavoidable ones
  uint64_t barriers = 0;
  double parse_s = 0;
  double run_s = 0;
};

// xorshift64: schedules depend on nothing but the seed.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 0x1234567u) {
    (*this)();
    (*this)();
  }
  uint32_t operator()() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return static_cast<uint32_t>(state_ >> 32);
  }
  uint32_t below(uint32_t bound) { return (*this)() % bound; }
  bool one_in(uint32_t n) { return below(n) == 0; }

 private:
  uint64_t state_;
};

}  // namespace emulator
