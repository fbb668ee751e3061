// Input gradient of depthwise and other grouped convolutions with few channels a group, by vectors
// of neighbouring channels as in conv_grouped.cpp.
//
// An input row is a convolution of the few output rows whose taps reach it. Those are copied into a
// ring of rows that the caches hold, zero where a pixel is inactive and beside the image, so that
// every input pixel is computed in one way and written once (KERNELS.md K-068).
#include <algorithm>

#include "core/conv_arguments.h"
#include "cpu/conv.h"
#include "cpu/images.h"
#include "cpu/kernels/kernel_table.h"
#include "cpu/lanes.h"
#include "cpu/scratch.h"

namespace perfconv::cpu {
namespace {

constexpr int64_t kRingBytes = 4 << 20;

// Input channels are summed over the output channels of their group.
LaneGroups input_lanes(const ConvGeometry& g) {
  return {g.groups, g.group_in_channels(), g.group_out_channels()};
}

int64_t lanes_of(ScalarType dtype) {
  int64_t lanes = 0;
  visit_dtype("perforated_conv2d_backward", dtype,
              [&]<class T>() { lanes = row_kernel<T>(kernels()).lanes; });
  return lanes;
}

// The output rows that an input row is summed over, in memory: row r in slot r % rows.
struct RowRing {
  int64_t rows;
  int64_t left;   // columns of zeros
  int64_t width;  // with those on the right

  explicit RowRing(const ConvGeometry& g)
      : rows((g.kernel_height - 1) * g.dilation_h / g.stride_h + 2),
        left((std::max<int64_t>(0, (g.kernel_width - 1) * g.dilation_w - g.pad_left) + g.stride_w -
              1) /
             g.stride_w) {
    const int64_t last = (g.in_width - 1 + g.pad_left) / g.stride_w;
    width = left + std::max(g.out_width, last + 1);
  }
  int64_t row_elements(const ConvGeometry& g) const { return width * g.out_channels; }
};

template <class T, class Acc>
class GroupedDgrad {
 public:
  GroupedDgrad(const GradProblem& problem, const LaneBlocks<Acc>& blocks)
      : problem_(problem),
        g_(problem.geometry),
        blocks_(blocks),
        ring_(problem.geometry),
        kernel_(row_kernel<T>(kernels())) {}

  void run() const {
    const int64_t work = g_.in_width * blocks_.count * g_.taps() * blocks_.steps;
    parallel_rows(g_.batch * g_.in_height, work, [&](int64_t begin, int64_t end) {
      Scratch memory(ring_.rows * ring_.row_elements(g_) * static_cast<int64_t>(sizeof(T)));
      T* rows = memory.data<T>();
      std::fill_n(rows, ring_.rows * ring_.row_elements(g_), T{});
      std::vector<int64_t> held(static_cast<size_t>(ring_.rows), -1);
      std::vector<int32_t> keep(static_cast<size_t>(g_.out_width), 0);
      for (int64_t line = begin; line < end; ++line) run_line(line, rows, held, keep.data());
    });
  }

 private:
  void run_line(int64_t line, T* rows, std::vector<int64_t>& held, int32_t* keep) const {
    const int64_t image = line / g_.in_height;
    const int64_t top = line % g_.in_height + g_.pad_top;
    std::vector<LaneTap> row_taps;  // of tap (kh, 0), the offset that of the ring's row
    for (int64_t kh = 0; kh < g_.kernel_height; ++kh) {
      const int64_t scaled = top - kh * g_.dilation_h;
      if (scaled < 0 || scaled % g_.stride_h != 0 || scaled / g_.stride_h >= g_.out_height)
        continue;
      const int64_t row = image * g_.out_height + scaled / g_.stride_h;
      const int64_t first = problem_.active->lower_bound(row * g_.out_width);
      const int64_t last = problem_.active->lower_bound((row + 1) * g_.out_width);
      if (first == last) continue;
      const int64_t slot = row % ring_.rows;
      if (held[slot] != row) copy(row, first, last, rows + slot * ring_.row_elements(g_), keep);
      held[slot] = row;
      row_taps.push_back({.offset = slot * ring_.row_elements(g_) + ring_.left * g_.out_channels,
                          .weight = kh * g_.kernel_width});
    }
    std::vector<LaneTap> taps;
    const int64_t weights = blocks_.block_weights / g_.taps();
    for (int64_t phase = 0; phase < std::min(g_.stride_w, g_.in_width); ++phase) {
      taps.clear();
      for (const LaneTap& row : row_taps) {
        for (int64_t kw = g_.kernel_width - 1; kw >= 0; --kw) {  // offsets ascend
          const int64_t scaled = phase + g_.pad_left - kw * g_.dilation_w;
          if (scaled % g_.stride_w != 0) continue;
          taps.push_back({.offset = row.offset + scaled / g_.stride_w * g_.out_channels,
                          .weight = (row.weight + kw) * weights});
        }
      }
      run_pixels(line, phase, rows, taps);
    }
  }

  // Output row `row`, whose active pixels are [begin, end), beside the zeros of a row of the ring.
  void copy(int64_t row, int64_t begin, int64_t end, T* to, int32_t* keep) const {
    const int64_t first = row * g_.out_width;
    const int32_t* positions = problem_.active->positions.get();
    for (int64_t i = begin; i < end; ++i) keep[positions[i] - first] = -1;
    kernel_.copy_kept(data<T>(problem_.grad_output) + first * g_.out_channels, keep, g_.out_width,
                      to + ring_.left * g_.out_channels, g_.out_channels);
    for (int64_t i = begin; i < end; ++i) keep[positions[i] - first] = 0;
  }

  // The pixels phase, phase + stride, ... of an input row.
  void run_pixels(int64_t line, int64_t phase, const T* rows,
                  const std::vector<LaneTap>& taps) const {
    kernel_.grouped_row(blocks_, {.taps = taps.data(),
                                  .tap_count = static_cast<int64_t>(taps.size()),
                                  .in = rows,
                                  .in_step = g_.out_channels,
                                  .count = (g_.in_width - phase + g_.stride_w - 1) / g_.stride_w,
                                  .out = mutable_data<T>(problem_.result) +
                                         (line * g_.in_width + phase) * g_.in_channels,
                                  .out_step = g_.stride_w * g_.in_channels});
  }

  const GradProblem& problem_;
  const ConvGeometry& g_;
  const LaneBlocks<Acc>& blocks_;
  RowRing ring_;
  const RowKernel<T, Acc>& kernel_;
};

// Weight (C, 1, K_h, K_w) as [tap][channel].
template <class T, class Acc>
std::vector<Acc> tap_major(const Tensor& weight, int64_t channels, int64_t taps) {
  std::vector<Acc> result(static_cast<size_t>(channels * taps));
  const T* from = data<T>(weight);
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t t = 0; t < taps; ++t) result[t * channels + c] = Acc(to_float(from[c * taps + t]));
  }
  return result;
}

}  // namespace

bool dgrad_fits_lanes(const ConvGeometry& g, ScalarType dtype) {
  if (g.in_pixels() == 0 || g.out_pixels() == 0) return false;
  const int64_t lanes = lanes_of(dtype);
  if (!input_lanes(g).fits(lanes)) return false;
  // Far taps would make a ring that no cache holds, or that no memory does.
  const int64_t reach = (g.kernel_height - 1) * g.dilation_h / g.stride_h;
  const int64_t beside = (g.kernel_width - 1) * g.dilation_w / g.stride_w;
  if (reach >= g.out_height + g.in_height || beside >= g.out_width + g.in_width) return false;
  const RowRing ring(g);
  return ring.rows * ring.row_elements(g) * element_bytes(storage_type(dtype)) <= kRingBytes;
}

void dgrad_grouped(const GradProblem& problem) {
  const ConvGeometry& g = problem.geometry;
  visit_dtype("perforated_conv2d_dgrad", problem.result.scalar_type(), [&]<class T>() {
    using Acc = AccumulateType<T>;
    const T* weight = data<T>(problem.operand);
    const LanePlan<Acc> plan(
        input_lanes(g), g.taps(), row_kernel<T>(kernels()).lanes,
        [&](int64_t channel, int64_t tap, int64_t step) {
          const int64_t inputs = g.group_in_channels();
          const int64_t output = channel / inputs * g.group_out_channels() + step;
          return Acc(to_float(weight[(output * inputs + channel % inputs) * g.taps() + tap]));
        });
    GroupedDgrad<T, Acc>(problem, plan.blocks()).run();
  });
}

void dgrad_depthwise(const GradProblem& problem) {
  const ConvGeometry& g = problem.geometry;
  const int64_t channels = g.in_channels;
  visit_dtype("perforated_conv2d_dgrad", problem.result.scalar_type(), [&]<class T>() {
    using Acc = AccumulateType<T>;
    const std::vector<Acc> weight = tap_major<T, Acc>(problem.operand, channels, g.taps());
    const T* grad = data<T>(problem.grad_output);
    T* result = mutable_data<T>(problem.result);
    const RowKernel<T, Acc>& row = row_kernel<T>(kernels());
    const int64_t lines = g.batch * g.in_height;
    // One input line per item, summed over the output lines whose taps reach it, in ascending
    // order: every sum has one owner.
    parallel_rows(lines, g.in_width * channels * g.taps() / 4, [&](int64_t begin, int64_t end) {
      std::vector<Acc> sums(static_cast<size_t>(g.in_width * channels));
      for (int64_t line = begin; line < end; ++line) {
        std::fill(sums.begin(), sums.end(), Acc(0));
        const int64_t image = line / g.in_height;
        const int64_t y = line % g.in_height;
        for (int64_t kh = g.kernel_height - 1; kh >= 0; --kh) {
          const int64_t scaled = y + g.pad_top - kh * g.dilation_h;
          if (scaled < 0 || scaled % g.stride_h != 0) continue;
          const int64_t out_y = scaled / g.stride_h;
          if (out_y >= g.out_height) continue;
          const int64_t first = (image * g.out_height + out_y) * g.out_width;
          const int64_t last = problem.active->lower_bound(first + g.out_width);
          for (int64_t i = problem.active->lower_bound(first); i < last; ++i) {
            const int64_t position = problem.active->positions[i];
            const int64_t x = (position - first) * g.stride_w - g.pad_left;
            for (int64_t kw = 0; kw < g.kernel_width; ++kw) {
              const int64_t in_x = x + kw * g.dilation_w;
              if (in_x < 0 || in_x >= g.in_width) continue;
              row.multiply_add(grad + position * channels,
                               weight.data() + (kh * g.kernel_width + kw) * channels,
                               sums.data() + in_x * channels, channels);
            }
          }
        }
        row.narrow(sums.data(), result + line * g.in_width * channels, g.in_width * channels);
      }
    });
  });
}

}  // namespace perfconv::cpu
