// Register-tile multiplications, written once over a vector type V and compiled once per
// instruction set. V gives: Element, Sum, Vec, kLanes, kDepthStep and zero, load, load_sum,
// store_sum, broadcast, multiply_add. Everything is in an unnamed namespace: two instruction sets
// must never share one instance.
//
// A tile of kRows x (kVecs * kLanes) sums stays in registers while the depth runs; per depth step
// it takes kVecs vector loads of the panel and kRows broadcasts for kRows * kVecs multiply-adds.
// The rows are reached through pointers, so active pixels need not be neighbours and no im2col
// matrix is made (the indirect convolution idea; kernels run at the dense rate, see KERNELS.md).
#pragma once

#include <algorithm>
#include <utility>

#include "cpu/kernels/kernel_table.h"

namespace perfconv::cpu {
namespace {

template <class V, int kRows, int kVecs>
struct TileSums {
  typename V::Vec value[kRows][kVecs];
};

// One depth step: sums[m][j] += broadcast(left(m)) * panel vector j.
template <class V, int kRows, int kVecs, class Left>
[[gnu::always_inline]] inline void step(TileSums<V, kRows, kVecs>& sums,
                                        const typename V::Element* panel, Left left) {
  typename V::PanelVec right[kVecs];
#pragma GCC unroll 4
  for (int j = 0; j < kVecs; ++j) right[j] = V::load(panel + j * V::kLanes * V::kDepthStep);
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
    const typename V::PanelVec value = V::broadcast(left(m));
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) {
      sums.value[m][j] = V::multiply_add(value, right[j], sums.value[m][j]);
    }
  }
}

template <class V, int kRows, int kVecs, int kTileRows>
[[gnu::always_inline]] inline void add_taps(TileSums<V, kRows, kVecs>& sums,
                                            const typename V::Element* const* rows, int64_t taps,
                                            int64_t depth, const typename V::Element* panel,
                                            NextLines next) {
  using Element = typename V::Element;
  constexpr int kPanelStep = kVecs * V::kLanes * V::kDepthStep;
  for (int64_t t = 0; t < taps; ++t) {
    const Element* pixel[kRows];
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) pixel[m] = rows[t * kTileRows + m];
    for (int64_t k = 0; k < depth; k += V::kDepthStep) {
      step<V, kRows, kVecs>(sums, panel, [&](int m) { return pixel[m] + k; });
      panel += kPanelStep;
      if (next.begin < next.end) {
        __builtin_prefetch(next.begin, 0, 2);  // into the second level
        next.begin += kCacheLine;
        if (next.begin >= next.end && next.count > 0) [[unlikely]] {
          next.begin = static_cast<const char*>(*next.rows++);
          next.end = next.begin + next.bytes;
          --next.count;
        }
      }
    }
  }
}

template <class V, int kRows, int kVecs, int kTileRows>
void multiply_rows(const typename V::Element* const* rows, int64_t taps, int64_t depth,
                   const typename V::Element* panel, NextLines next, typename V::Sum* tile) {
  TileSums<V, kRows, kVecs> sums;
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) sums.value[m][j] = V::zero();
  }
  add_taps<V, kRows, kVecs, kTileRows>(sums, rows, taps, depth, panel, next);
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) {
      V::store_sum(tile + (m * kVecs + j) * V::kLanes, sums.value[m][j]);
    }
  }
}

template <class V, int kRows, int kVecs>
void accumulate_rows(const typename V::Element* const* rows, int64_t first, int64_t depth,
                     const typename V::Element* panel, typename V::Sum* const* out,
                     int64_t out_first, int64_t next_count) {
  constexpr int64_t kLine = kCacheLine / sizeof(typename V::Sum);
  constexpr int64_t kRowLines = std::max<int64_t>(1, kVecs * V::kLanes / kLine);
  int64_t fetched = 0;
  const typename V::Element* pixel[kRows];
  TileSums<V, kRows, kVecs> sums;
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
    pixel[m] = rows[m] + first;
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) {
      sums.value[m][j] = V::load_sum(out[m] + out_first + j * V::kLanes);
    }
  }
  for (int64_t k = 0; k < depth; k += V::kDepthStep) {
    step<V, kRows, kVecs>(sums, panel, [&](int m) { return pixel[m] + k; });
    panel += kVecs * V::kLanes * V::kDepthStep;
    if (fetched < next_count * kRowLines) {  // one line a step: a burst would stall
      __builtin_prefetch(out[kRows + fetched / kRowLines] + out_first + fetched % kRowLines * kLine,
                         1, 3);
      ++fetched;
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) {
      V::store_sum(out[m] + out_first + j * V::kLanes, sums.value[m][j]);
    }
  }
}

template <class V, int kRows, int kVecs>
void outer_rows(const typename V::Element* left, int64_t left_pitch,
                const typename V::Element* const* right, int64_t first, int64_t steps,
                bool is_first, typename V::Sum* out, int64_t out_pitch, int64_t next_count) {
  constexpr int64_t kLine = kCacheLine / sizeof(typename V::Sum);
  constexpr int64_t kRowLines = std::max<int64_t>(1, kVecs * V::kLanes / kLine);
  constexpr int64_t kRightLines = std::max<int64_t>(
      1, kVecs * V::kLanes * V::kDepthStep * sizeof(typename V::Element) / kCacheLine);
  const typename V::Sum* next = out + kRows * out_pitch;
  int64_t lines = next_count * kRowLines;
  TileSums<V, kRows, kVecs> sums;
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) {
      sums.value[m][j] = is_first ? V::zero() : V::load_sum(out + m * out_pitch + j * V::kLanes);
    }
  }
  for (int64_t k = 0; k < steps; ++k) {
    step<V, kRows, kVecs>(sums, right[k] + first, [&](int m) { return left + m * V::kDepthStep; });
    left += left_pitch;
    const auto* ahead = reinterpret_cast<const char*>(right[k + kStepsAhead] + first);
#pragma GCC unroll 4
    for (int64_t j = 0; j < kRightLines; ++j) __builtin_prefetch(ahead + j * kCacheLine, 0, 3);
    if (lines > 0) {  // one line a step: a burst would stall
      --lines;
      __builtin_prefetch(next + lines % kRowLines * kLine, 1, 3);
      if (lines % kRowLines == 0) next += out_pitch;
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) {
      V::store_sum(out + m * out_pitch + j * V::kLanes, sums.value[m][j]);
    }
  }
}

// Calls function(constant m) for the m in 1..kTileRows that equals count.
template <int kTileRows, class Function>
[[gnu::always_inline]] inline void visit_rows(int64_t count, Function function) {
  if (count == kTileRows) {
    function(std::integral_constant<int, kTileRows>{});
    return;
  }
  [&]<int... kIndex>(std::integer_sequence<int, kIndex...>) {
    (void)((count == kIndex + 1 && (function(std::integral_constant<int, kIndex + 1>{}), true)) ||
           ...);
  }(std::make_integer_sequence<int, kTileRows - 1>{});
}

// multiply alone: of a tile that only the forward pass takes.
template <class V, int kTileRows, int kVecs>
GemmKernel<typename V::Element, typename V::Sum> make_forward_kernel() {
  using Element = typename V::Element;
  using Sum = typename V::Sum;
  GemmKernel<Element, Sum> kernel;
  kernel.tile_rows = kTileRows;
  kernel.tile_cols = kVecs * V::kLanes;
  kernel.depth_step = V::kDepthStep;
  static_assert(kTileRows <= kMaxTileRows && kVecs * V::kLanes <= kMaxTileCols,
                "stack buffers of the callers are sized by kMaxTileRows and kMaxTileCols");
  kernel.multiply = [](const Element* const* rows, int64_t count, int64_t taps, int64_t depth,
                       const Element* panel, NextLines next, Sum* tile) {
    visit_rows<kTileRows>(count, [&](auto m) {
      multiply_rows<V, decltype(m)::value, kVecs, kTileRows>(rows, taps, depth, panel, next, tile);
    });
  };
  return kernel;
}

template <class V, int kTileRows, int kVecs>
GemmKernel<typename V::Element, typename V::Sum> make_gemm_kernel() {
  using Element = typename V::Element;
  using Sum = typename V::Sum;
  GemmKernel<Element, Sum> kernel = make_forward_kernel<V, kTileRows, kVecs>();
  kernel.accumulate = [](const Element* const* rows, int64_t first, int64_t count, int64_t depth,
                         const Element* panel, Sum* const* out, int64_t out_first,
                         int64_t next_count) {
    visit_rows<kTileRows>(count, [&](auto m) {
      accumulate_rows<V, decltype(m)::value, kVecs>(rows, first, depth, panel, out, out_first,
                                                    next_count);
    });
  };
  kernel.outer = [](const Element* left, int64_t left_pitch, const Element* const* right,
                    int64_t first, int64_t steps, int64_t count, bool is_first, Sum* out,
                    int64_t out_pitch, int64_t next_count) {
    visit_rows<kTileRows>(count, [&](auto m) {
      outer_rows<V, decltype(m)::value, kVecs>(left, left_pitch, right, first, steps, is_first, out,
                                               out_pitch, next_count);
    });
  };
  return kernel;
}

}  // namespace
}  // namespace perfconv::cpu
