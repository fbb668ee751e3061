// Warp-wide instructions.
#include "runtime/gather.h"

namespace emulator {

Gathering& join_gathering(Execution& x, const Instruction& i, LaneMask members) {
  for (Gathering& gathering : x.warp->gatherings) {
    if (gathering.members != members) continue;
    if (gathering.instruction != &i || gathering.frame != x.frame) {
      x.fail("divergent warp-wide instructions: meets " +
             x.frame->function.module->describe(*gathering.instruction->statement));
    }
    return gathering;
  }
  return x.warp->gatherings.emplace_back(Gathering{&i, x.frame, members, 0});
}

void remove_gathering(Warp* warp, LaneMask members) {
  std::erase_if(warp->gatherings,
                [&](const Gathering& gathering) { return gathering.members == members; });
}

void recheck_gatherings(Warp* warp) {
  std::erase_if(warp->gatherings, [&](const Gathering& gathering) {
    if (gathering.arrived != (gathering.members & warp->alive)) return false;
    const auto* code = gathering.frame->function.code.data();
    for_each_lane(gathering.arrived, [&](int lane) {
      warp->pc[lane] = static_cast<int>(gathering.instruction - code);
    });
    warp->ready |= gathering.arrived;
    return true;
  });
}

}  // namespace emulator
