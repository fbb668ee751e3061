// Depthwise and other grouped convolutions with few channels a group: no GEMM, but sums of vectors
// of neighbouring channels. Memory-bound: output rows are taken one after the other, active pixels
// read their taps by offsets that all pixels of a row share, and the fill of a row is written just
// before its sums. Rows with many active pixels are computed whole and stored once: the value, or
// zero (KERNELS.md K-065).
#include <algorithm>

#include "cpu/conv.h"
#include "cpu/images.h"
#include "cpu/kernels/kernel_table.h"
#include "cpu/lanes.h"
#include "cpu/row_pointers.h"

namespace perfconv::cpu {
namespace {

constexpr int64_t kBlockPixels = 64;

template <class T, class Acc>
class GroupedForward {
 public:
  GroupedForward(const ForwardProblem& problem, const LaneBlocks<Acc>& blocks, const Acc* bias)
      : problem_(problem),
        g_(problem.geometry),
        blocks_(blocks),
        bias_(bias),
        row_(problem.geometry),
        kernel_(row_kernel<T>(kernels())) {
    // An activation of zero is zero, so that a row can be activated as a whole. In sixteen bits
    // that would round before and after.
    may_take_whole_rows_ = problem.fill == Fill::kZero && !problem.residual &&
                           row_.first_inside() < row_.end_inside() &&
                           (problem.activation == Activation::kNone || std::is_same_v<T, Acc>);
  }

  void run() const {
    const int64_t lines = g_.batch * g_.out_height;
    const int64_t work = g_.out_width * blocks_.count * g_.taps() * blocks_.steps;
    parallel_rows(lines, work, [&](int64_t begin, int64_t end) {
      std::vector<LaneTap> taps;
      std::vector<int32_t> keep(static_cast<size_t>(g_.out_width), 0);
      int64_t i = problem_.active->lower_bound(begin * g_.out_width);
      for (int64_t line = begin; line < end; ++line) {
        const int64_t last = problem_.active->lower_bound((line + 1) * g_.out_width);
        if (may_take_whole_rows_ && 5 * (last - i) >= 2 * g_.out_width) {
          run_whole_line(line, i, last, taps, keep.data());
        } else {
          run_line(line, i, last, taps);
        }
        i = last;
      }
    });
  }

 private:
  // The active pixels [begin, end) of one output row.
  void run_line(int64_t line, int64_t begin, int64_t end, std::vector<LaneTap>& taps) const {
    const int64_t first = line * g_.out_width;
    // Few pixels are overwritten; beside many the gaps are too small for a fill of the whole row.
    const bool has_few = begin < end && 2 * (end - begin) < g_.out_width;
    if (has_few) {
      fill_before(problem_, first, first + g_.out_width);
    } else {
      fill_inactive(problem_, first, first + g_.out_width);
    }
    if (begin == end) return;
    const int32_t* positions = problem_.active->positions.get();
    auto index_of = [&](int64_t x) {
      return std::lower_bound(positions + begin, positions + end, first + x) - positions;
    };
    const int64_t inside = index_of(row_.first_inside());
    const int64_t outside = std::max(inside, index_of(row_.end_inside()));
    for (int64_t i = begin; i < inside; ++i) run_border(line, positions[i] - first, taps);
    find_taps(line, row_.all_columns(), taps);
    for (int64_t i = inside; i < outside; i += kBlockPixels) {
      run_pixels(line, positions + i, std::min(kBlockPixels, outside - i), taps);
    }
    for (int64_t i = outside; i < end; ++i) run_border(line, positions[i] - first, taps);
  }

  // The same with every pixel between the borders computed. keep: of out_width zeros, before and
  // after.
  void run_whole_line(int64_t line, int64_t begin, int64_t end, std::vector<LaneTap>& taps,
                      int32_t* keep) const {
    const int64_t first = line * g_.out_width;
    const int32_t* positions = problem_.active->positions.get();
    for (int64_t i = begin; i < end; ++i) keep[positions[i] - first] = -1;
    find_taps(line, row_.all_columns(), taps);
    const int64_t count = row_.end_inside() - row_.first_inside();
    T* out = mutable_data<T>(problem_.output) + (first + row_.first_inside()) * g_.out_channels;
    const int64_t in_step = g_.stride_w * g_.in_channels;
    kernel_.grouped_row(
        blocks_, {.taps = taps.data(),
                  .tap_count = static_cast<int64_t>(taps.size()),
                  .in = data<T>(problem_.input) + row_.first_inside() * in_step,
                  .in_step = in_step,
                  .count = count,
                  .bias = bias_,
                  .out = out,
                  .out_step = g_.out_channels,
                  .keep = end - begin < g_.out_width ? keep + row_.first_inside() : nullptr});
    if (problem_.activation != Activation::kNone) {
      kernel_.activate(out, problem_.activation, out, count * g_.out_channels);
    }
    run_borders(line, 0, row_.first_inside(), taps, keep);  // what they read is near by now
    run_borders(line, row_.end_inside(), g_.out_width, taps, keep);
    for (int64_t i = begin; i < end; ++i) keep[positions[i] - first] = 0;
  }

  // The columns [begin, end) of an output row.
  void run_borders(int64_t line, int64_t begin, int64_t end, std::vector<LaneTap>& taps,
                   const int32_t* keep) const {
    T* out = mutable_data<T>(problem_.output) + line * g_.out_width * g_.out_channels;
    zero_bytes(out + begin * g_.out_channels,
               (end - begin) * g_.out_channels * static_cast<int64_t>(sizeof(T)));
    for (int64_t x = begin; x < end; ++x) {
      if (keep[x] != 0) run_border(line, x, taps);
    }
  }

  void run_border(int64_t line, int64_t x, std::vector<LaneTap>& taps) const {
    find_taps(line, row_.columns(x), taps);
    const auto position = static_cast<int32_t>(line * g_.out_width + x);
    run_pixels(line, &position, 1, taps);
  }

  void find_taps(int64_t line, KernelColumns columns, std::vector<LaneTap>& taps) const {
    const int64_t weights = blocks_.block_weights / g_.taps();
    taps.clear();
    row_.visit(line, columns, [&](int64_t offset, int64_t tap) {
      taps.push_back({.offset = offset, .weight = tap * weights});
    });
  }

  void run_pixels(int64_t line, const int32_t* positions, int64_t count,
                  const std::vector<LaneTap>& taps) const {
    const int64_t first = line * g_.out_width;
    int64_t reads[kBlockPixels];
    int64_t writes[kBlockPixels];
    for (int64_t m = 0; m < count; ++m) {
      reads[m] = (positions[m] - first) * g_.stride_w * g_.in_channels;
      writes[m] = positions[m] * g_.out_channels;
    }
    kernel_.grouped(blocks_, {.taps = taps.data(),
                              .tap_count = static_cast<int64_t>(taps.size()),
                              .in = data<T>(problem_.input),
                              .reads = reads,
                              .count = count,
                              .bias = bias_,
                              .residual = problem_.residual ? data<T>(*problem_.residual) : nullptr,
                              .activation = problem_.activation,
                              .out = mutable_data<T>(problem_.output),
                              .writes = writes});
  }

  const ForwardProblem& problem_;
  const ConvGeometry& g_;
  const LaneBlocks<Acc>& blocks_;
  const Acc* bias_;
  RowTaps row_;
  const RowKernel<T, Acc>& kernel_;
  bool may_take_whole_rows_;
};

}  // namespace

bool forward_fits_lanes(const ConvGeometry& g, ScalarType dtype) {
  bool fits = false;
  visit_dtype("perforated_conv2d", dtype,
              [&]<class T>() { fits = output_lanes(g).fits(row_kernel<T>(kernels()).lanes); });
  return fits;
}

void forward_grouped(const ForwardProblem& problem) {
  const ConvGeometry& g = problem.geometry;
  visit_dtype("perforated_conv2d", problem.input.scalar_type(), [&]<class T>() {
    using Acc = AccumulateType<T>;
    const T* weight = data<T>(problem.weight);
    const LanePlan<Acc> plan(
        output_lanes(g), g.taps(), row_kernel<T>(kernels()).lanes,
        [&](int64_t channel, int64_t tap, int64_t step) {
          return Acc(to_float(weight[(channel * g.group_in_channels() + step) * g.taps() + tap]));
        });
    std::vector<Acc> bias(static_cast<size_t>(g.out_channels), Acc(0));
    if (problem.bias) convert_row(data<T>(*problem.bias), bias.data(), g.out_channels);
    GroupedForward<T, Acc>(problem, plan.blocks(), bias.data()).run();
  });
}

}  // namespace perfconv::cpu
