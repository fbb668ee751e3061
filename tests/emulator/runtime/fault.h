// What ends a launch: a fault of the kernel under test, or PTX that the emulator does not know.
#pragma once

#include <stdexcept>
#include <string>

namespace emulator {

enum class FaultKind {
  kFailure,         // race, divergence, misuse of an instruction
  kMisaligned,      // address not a multiple of the access size
  kIllegalAddress,  // outside every object
  kTimeout,         // deadlock or livelock
  kAssert,          // assert() of device code
  kUnsupported,     // PTX that is not emulated, or none to be found
};

struct Fault : std::runtime_error {
  Fault(FaultKind fault_kind, const std::string& text, int fault_lane = -1)
      : std::runtime_error(text), kind(fault_kind), lane(fault_lane) {}
  FaultKind kind;
  int lane;  // of the running warp; -1 when no lane is to blame
};

}  // namespace emulator
