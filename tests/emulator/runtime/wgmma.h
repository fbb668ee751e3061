// wgmma operations of one warp that it has not yet waited for.
#pragma once

#include <array>
#include <deque>
#include <map>
#include <vector>

#include "runtime/program.h"

namespace emulator {

struct WgmmaOperation {
  const Instruction* instruction;
  uint64_t a;  // descriptors
  uint64_t b;
  bool adds;     // to the accumulators, instead of overwriting them
  bool is_done;  // may run when it is issued, or only when it is waited for
};

struct WgmmaState {
  bool is_fenced = false;
  std::vector<WgmmaOperation> open;                // of no group yet
  std::deque<std::vector<WgmmaOperation>> groups;  // committed
  // True contents of accumulators in flight, by offset in the frame; the registers hold NaN.
  std::map<uint32_t, std::array<float, kLanes>> values;
};

}  // namespace emulator
