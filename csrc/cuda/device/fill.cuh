// What inactive output pixels get, written by the launch that writes the active ones: 0, or base.
#pragma once

#include "cuda/device/epilogue.cuh"

namespace perfconv::cuda {

__device__ __forceinline__ bool is_active(const MaskArgs& mask, int64_t position) {
  const auto flat = static_cast<uint32_t>(position);  // below 2^31
  const auto image = static_cast<uint32_t>(mask.height * mask.width);
  return mask.mask[mask.is_shared ? flat % image : flat] != 0;
}

// Runs of kSize channels: a warp takes 32 neighbouring pixels, so that its stores are contiguous
// wherever pixels are inactive.
template <class T, int kSize>
__device__ __forceinline__ void fill_runs(const MaskArgs& mask, const Epilogue& epilogue,
                                          int64_t channels, void* output) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t warps = int64_t{gridDim.x} * blockDim.x / 32;
  const int64_t first_warp = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32;
  const auto runs = static_cast<uint32_t>(channels / kSize);  // of a pixel
  const int64_t pixels = mask.pixels();
  for (int64_t first = 32 * first_warp; first < pixels; first += 32 * warps) {
    const bool is_mine = first + lane < pixels && !is_active(mask, first + lane);
    const unsigned inactive = __ballot_sync(~0u, is_mine);
    if (inactive == 0) continue;
    for (uint32_t i = lane; i < 32 * runs; i += 32) {
      const uint32_t pixel = i / runs;
      if ((inactive >> pixel & 1u) == 0) continue;
      const int64_t run = (first + pixel) * runs + i % runs;
      Run<T, kSize> value{};
      if (epilogue.base != nullptr) {
        value = load_run<T, kSize>(epilogue.base, run * kSize);
#pragma unroll
        for (T& element : value.values) {
          element = from_sum<T>(activate(to_sum(element), epilogue.base_activation));
        }
      }
      store_run(output, run * kSize, value);
    }
  }
}

// Writes the inactive pixels of output (pixels, channels); every warp of the grid must call it.
// Disjoint from what active pixels write. is_vectorised: rows and pointers allow 16-byte accesses.
template <class T>
__device__ __forceinline__ void fill_inactive(const MaskArgs& mask, const Epilogue& epilogue,
                                              int64_t channels, bool is_vectorised, void* output) {
  if (leaves_inactive(epilogue.fill)) return;
  if (is_vectorised) {
    fill_runs<T, kRunSize<T>>(mask, epilogue, channels, output);
  } else {
    fill_runs<T, 1>(mask, epilogue, channels, output);
  }
}

}  // namespace perfconv::cuda
