// Warp-wide instructions: lanes wait until all of the member mask have arrived.
#pragma once

#include "runtime/machine.h"

namespace emulator {

// Throws Fault when lanes of one member mask meet at different instructions.
Gathering& join_gathering(Execution& x, const Instruction& i, LaneMask members);
void remove_gathering(Warp* warp, LaneMask members);

// Lanes that have exited are not waited for: those waiting for them try again.
void recheck_gatherings(Warp* warp);

// Calls f(lanes) with x.mask set to the lanes of every member mask that is complete with these
// arrivals; the others wait. members(lane) is the mask that a lane names.
template <class Members, class F>
void gather(Execution& x, const Instruction& i, Members members, F f) {
  for (LaneMask left = x.mask; left != 0;) {
    const LaneMask named = members(first_lane(left));
    LaneMask arriving = 0;
    for_each_lane(left, [&](int lane) {
      if (members(lane) == named) arriving |= lane_bit(lane);
    });
    left &= ~arriving;
    if ((arriving & ~named) != 0) {
      x.fail("a lane is not in its own member mask", first_lane(arriving & ~named));
    }
    const LaneMask needed = named & x.warp->alive;
    if (arriving == needed) [[likely]] {
      x.mask = arriving;
      f(arriving);
      continue;
    }
    Gathering& gathering = join_gathering(x, i, named);
    gathering.arrived |= arriving;
    if (gathering.arrived != needed) {
      x.block_lanes(arriving);
      continue;
    }
    const LaneMask waiting = needed & ~arriving;
    remove_gathering(x.warp, named);
    x.mask = needed;
    f(needed);
    x.warp->ready |= waiting;
    x.group |= waiting;
  }
}

// For instructions of whole warps.
template <class F>
void gather_warp(Execution& x, const Instruction& i, F f) {
  gather(x, i, [](int) { return kAllLanes; }, f);
}

}  // namespace emulator
