// How large a grid is: enough blocks to fill the device, never more than the work.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/kernels/launch.h"

namespace perfconv::cuda {

constexpr int64_t ceil_div(int64_t value, int64_t divisor) {
  return (value + divisor - 1) / divisor;
}

// Blocks of a grid-stride loop over items whose number may be smaller on the device.
inline unsigned grid_blocks(const LaunchContext& context, int64_t items, int threads,
                            int blocks_per_multiprocessor) {
  const int64_t most = int64_t{context.multiprocessors} * blocks_per_multiprocessor;
  return static_cast<unsigned>(std::clamp<int64_t>(ceil_div(items, threads), 1, most));
}

}  // namespace perfconv::cuda
