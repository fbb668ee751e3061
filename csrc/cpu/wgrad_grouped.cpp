// Weight gradient of depthwise and other grouped convolutions with few channels a group, by vectors
// of neighbouring channels as in conv_grouped.cpp: sums over the active pixels of a slice of output
// rows, the slices added in order (KERNELS.md K-068). Slices do not depend on the number of
// threads, and neither do the bits of the result.
#include <algorithm>

#include "cpu/conv.h"
#include "cpu/images.h"
#include "cpu/kernels/kernel_table.h"
#include "cpu/lanes.h"
#include "cpu/row_pointers.h"
#include "cpu/scratch.h"

namespace perfconv::cpu {
namespace {

constexpr int64_t kBlockPixels = 64;
constexpr int64_t kSlices = 32;

template <class T, class Acc>
class GroupedWgrad {
 public:
  GroupedWgrad(const GradProblem& problem, const LaneBlocks<Acc>& blocks, int64_t lanes)
      : problem_(problem),
        g_(problem.geometry),
        blocks_(blocks),
        lanes_(lanes),
        row_(problem.geometry),
        kernel_(row_kernel<T>(kernels())) {
    const int64_t lines = g_.batch * g_.out_height;
    slice_lines_ = std::max<int64_t>(1, (lines + kSlices - 1) / kSlices);
    slices_ = (lines + slice_lines_ - 1) / slice_lines_;
    slice_sums_ = blocks.count * blocks.steps * g_.taps() * lanes;
  }

  void run() const {
    Scratch memory(std::max<int64_t>(1, slices_) * slice_sums_ * static_cast<int64_t>(sizeof(Acc)));
    Acc* sums = memory.data<Acc>();
    const int64_t work = problem_.active->count * blocks_.count * blocks_.steps * g_.taps() /
                         std::max<int64_t>(1, slices_);
    parallel_rows(slices_, work, [&](int64_t begin, int64_t end) {
      for (int64_t slice = begin; slice < end; ++slice) {
        run_slice(slice, sums + slice * slice_sums_);
      }
    });
    if (slices_ == 0) std::fill_n(sums, slice_sums_, Acc(0));
    const auto add = row_kernel<Acc>(kernels()).add;
    for (int64_t slice = 1; slice < slices_; ++slice) {
      add(sums + slice * slice_sums_, sums, slice_sums_);
    }
    store(sums);
  }

 private:
  void run_slice(int64_t slice, Acc* sums) const {
    std::fill_n(sums, slice_sums_, Acc(0));
    Taps taps;
    const int64_t last_line = std::min((slice + 1) * slice_lines_, g_.batch * g_.out_height);
    int64_t begin = problem_.active->lower_bound(slice * slice_lines_ * g_.out_width);
    for (int64_t line = slice * slice_lines_; line < last_line; ++line) {
      const int64_t end = problem_.active->lower_bound((line + 1) * g_.out_width);
      if (begin < end) run_line(line, begin, end, taps, sums);
      begin = end;
    }
  }

  struct Taps {
    std::vector<int64_t> offset;
    std::vector<int64_t> index;
  };

  // The active pixels [begin, end) of one output row.
  void run_line(int64_t line, int64_t begin, int64_t end, Taps& taps, Acc* sums) const {
    const int64_t first = line * g_.out_width;
    const int32_t* positions = problem_.active->positions.get();
    auto index_of = [&](int64_t x) {
      return std::lower_bound(positions + begin, positions + end, first + x) - positions;
    };
    const int64_t inside = index_of(row_.first_inside());
    const int64_t outside = std::max(inside, index_of(row_.end_inside()));
    for (int64_t i = begin; i < inside; ++i) run_border(line, positions + i, taps, sums);
    find_taps(line, row_.all_columns(), taps);
    for (int64_t i = inside; i < outside; i += kBlockPixels) {
      run_pixels(line, positions + i, std::min(kBlockPixels, outside - i), taps, sums);
    }
    for (int64_t i = outside; i < end; ++i) run_border(line, positions + i, taps, sums);
  }

  void run_border(int64_t line, const int32_t* position, Taps& taps, Acc* sums) const {
    find_taps(line, row_.columns(*position - line * g_.out_width), taps);
    run_pixels(line, position, 1, taps, sums);
  }

  void find_taps(int64_t line, KernelColumns columns, Taps& taps) const {
    taps.offset.clear();
    taps.index.clear();
    row_.visit(line, columns, [&](int64_t offset, int64_t tap) {
      taps.offset.push_back(offset);
      taps.index.push_back(tap);
    });
  }

  void run_pixels(int64_t line, const int32_t* positions, int64_t count, const Taps& taps,
                  Acc* sums) const {
    int64_t reads[kBlockPixels];
    int64_t grads[kBlockPixels];
    for (int64_t m = 0; m < count; ++m) {
      reads[m] = (positions[m] - line * g_.out_width) * g_.stride_w * g_.in_channels;
      grads[m] = positions[m] * g_.out_channels;
    }
    kernel_.grouped_products(blocks_,
                             {.taps = taps.offset.data(),
                              .tap_count = static_cast<int64_t>(taps.offset.size()),
                              .in = data<T>(problem_.operand),
                              .reads = reads,
                              .grad = data<T>(problem_.grad_output),
                              .grads = grads,
                              .count = count},
                             taps.index.data(), g_.taps(), sums);
  }

  // [block][step][tap][lanes] as (C_out, C_in / groups, K_h, K_w).
  void store(const Acc* sums) const {
    T* to = mutable_data<T>(problem_.result);
    for (int64_t block = 0; block < blocks_.count; ++block) {
      for (int64_t step = 0; step < blocks_.steps; ++step) {
        for (int64_t tap = 0; tap < g_.taps(); ++tap) {
          for (int64_t i = 0; i < lanes_; ++i) {
            const int64_t channel = blocks_.out_first[block] + i;
            to[(channel * blocks_.steps + step) * g_.taps() + tap] = from_float<T>(*sums++);
          }
        }
      }
    }
  }

  const GradProblem& problem_;
  const ConvGeometry& g_;
  const LaneBlocks<Acc>& blocks_;
  int64_t lanes_;
  RowTaps row_;
  const RowKernel<T, Acc>& kernel_;
  int64_t slice_lines_;
  int64_t slices_;
  int64_t slice_sums_;
};

}  // namespace

void wgrad_grouped(const GradProblem& problem) {
  const ConvGeometry& g = problem.geometry;
  visit_dtype("perforated_conv2d_wgrad", problem.result.scalar_type(), [&]<class T>() {
    using Acc = AccumulateType<T>;
    const int64_t lanes = row_kernel<T>(kernels()).lanes;
    const LanePlan<Acc> plan(output_lanes(g), 0, lanes,
                             [](int64_t, int64_t, int64_t) { return Acc(0); });
    GroupedWgrad<T, Acc>(problem, plan.blocks(), lanes).run();
  });
}

void wgrad_depthwise(const GradProblem& problem) {
  const ConvGeometry& g = problem.geometry;
  const int64_t channels = g.in_channels;
  visit_dtype("perforated_conv2d_wgrad", problem.result.scalar_type(), [&]<class T>() {
    using Acc = AccumulateType<T>;
    const T* grad = data<T>(problem.grad_output);
    T* result = mutable_data<T>(problem.result);
    const RowKernel<T, Acc>& row = row_kernel<T>(kernels());
    constexpr int64_t kBlock = 64;  // channels of one item
    const int64_t blocks = (channels + kBlock - 1) / kBlock;
    parallel_rows(
        blocks, problem.active->count * g.taps() * kBlock / 4, [&](int64_t begin, int64_t end) {
          TapPointers<T> pointers(g, data<T>(problem.operand), nullptr, 1);
          std::vector<Acc> sums(static_cast<size_t>(g.taps() * kBlock));
          for (int64_t block = begin; block < end; ++block) {
            const int64_t first = block * kBlock;
            const int64_t count = std::min(kBlock, channels - first);
            std::fill(sums.begin(), sums.end(), Acc(0));
            for (int64_t i = 0; i < problem.active->count; ++i) {
              pointers.fill(problem.active->positions.get() + i, 1, first);
              const T* value = grad + int64_t{problem.active->positions[i]} * channels + first;
              for (int64_t t = 0; t < g.taps(); ++t) {
                const T* in = pointers.tile(0)[t];
                if (in != nullptr) row.product_add(in, value, sums.data() + t * kBlock, count);
              }
            }
            for (int64_t c = 0; c < count; ++c) {
              for (int64_t t = 0; t < g.taps(); ++t) {
                result[(first + c) * g.taps() + t] = from_float<T>(sums[t * kBlock + c]);
              }
            }
          }
        });
  });
}

}  // namespace perfconv::cpu
