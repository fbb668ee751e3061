// What the planner may know of a device and of two operands that its kernels copy.
#pragma once

#include <cstdint>

#include "cuda/kernels/launch.h"
#include "cuda/planner.h"

namespace perfconv::cuda {

// Args: of an operator, with storage and allow_tf32.
template <class Args>
DeviceTraits device_traits(const LaunchContext& context, const Args& args, const void* left,
                           const void* right) {
  const auto is_aligned = [](const void* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
  };
  return {.storage = args.storage,
          .allow_tf32 = args.allow_tf32,
          .is_aligned = is_aligned(left) && is_aligned(right),
          .compute_capability = context.compute_capability};
}

}  // namespace perfconv::cuda
