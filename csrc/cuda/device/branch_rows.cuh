// The rows of multi-dilation convolution: output pixels sorted by the branch they chose.
//
// The dilation of a branch is a factor of the row's address, so all branches are one product. Where
// weights or biases differ from branch to branch, each begins with a tile of its own: row numbers
// are rounded up to `unit` rows a branch, and those without a pixel store nothing. Branches that
// copy have no rows.
#pragma once

#include "cuda/device/epilogue.cuh"
#include "cuda/device/gemm_args.cuh"
#include "cuda/device/grid.cuh"

namespace perfconv::cuda {

struct BranchRows {
  static constexpr bool kMayAddSums = false;

  MultiDilationArgs args;
  SortedBranches pixels;
  int unit = 1;

  // A row as a branch and a place in the sorted list, -1 without a pixel.
  struct Row {
    int branch;
    int index;
  };

  __device__ int branch_rows(int branch) const {
    if (args.dilations[branch] == 0) return 0;
    const int count = pixels.starts[branch + 1] - pixels.starts[branch];
    const auto step = static_cast<uint32_t>(unit);  // 32 bits: the division takes few registers
    return static_cast<int>((static_cast<uint32_t>(count) + step - 1) / step * step);
  }

  __device__ int count() const {
    int rows = 0;
    for (int branch = 0; branch < args.branches; ++branch) rows += branch_rows(branch);
    return rows;
  }

  __device__ Row find(int r) const {
    int branch = 0;
    for (int rows = branch_rows(0); r >= rows; rows = branch_rows(++branch)) r -= rows;
    const int index = pixels.starts[branch] + r;
    return {branch, index < pixels.starts[branch + 1] ? index : -1};
  }

  __device__ GatheredRow row(const GemmArgs&, int r) const {
    const Row found = find(r);
    if (found.index < 0) return {};
    const ConvGeometry& g = args.geometry;
    const int32_t position = pixels.sorted[found.index];
    const int32_t dilation = args.dilations[found.branch];
    const auto width = static_cast<uint32_t>(g.in_width);
    const auto height = static_cast<uint32_t>(g.in_height);
    const uint32_t line = static_cast<uint32_t>(position) / width;
    const auto x = static_cast<int>(static_cast<uint32_t>(position) - line * width);
    const auto y = static_cast<int>(line % height);
    const auto side = static_cast<int>(g.kernel_height);
    uint32_t taps = 0;
    int tap = 0;
    for (int kh = 0; kh < side; ++kh) {
      const int64_t tap_y = y + int64_t{kh - side / 2} * dilation;
      const bool is_row_inside = tap_y >= 0 && tap_y < g.in_height;
      for (int kw = 0; kw < side; ++kw, ++tap) {
        const int64_t tap_x = x + int64_t{kw - side / 2} * dilation;
        if (is_row_inside && tap_x >= 0 && tap_x < g.in_width) taps |= 1u << tap;
      }
    }
    return {static_cast<uint32_t>(position), dilation, taps, position};
  }

  __device__ int64_t b_offset(int r) const {
    return args.weight_pitch == 0 ? 0 : find(r).branch * args.weight_pitch;
  }
  __device__ int bias_offset(int r) const {
    return args.bias_pitch == 0 ? 0 : find(r).branch * args.bias_pitch;
  }

  // Pixels that copy the input, and inactive ones.
  template <class T>
  __device__ void write_others(const GemmArgs& gemm) const {
    if (gemm.is_vectorised) {
      write_runs<T, kRunSize<T>>();
    } else {
      write_runs<T, 1>();
    }
  }

  template <class T, int kSize>
  __device__ void write_runs() const {
    const int64_t channels = args.geometry.out_channels;
    const int64_t warps = int64_t{gridDim.x} * blockDim.x / 32;
    const int64_t warp = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32;
    for (int64_t p = warp; p < args.geometry.out_pixels(); p += warps) {
      const int branch = args.choice[p];
      const bool is_active = branch >= 0 && branch < args.branches;
      if (is_active && args.dilations[branch] != 0) continue;
      if (!is_active && leaves_inactive(args.epilogue.fill)) continue;
      const void* source = is_active ? args.input : args.epilogue.base;
      for (int64_t c = threadIdx.x % 32 * kSize; c < channels; c += 32 * kSize) {
        const int64_t offset = p * channels + c;
        const Run<T, kSize> run =
            source != nullptr ? load_run<T, kSize>(source, offset) : Run<T, kSize>{};
        store_run(args.output, offset, run);
      }
    }
  }
};

}  // namespace perfconv::cuda
