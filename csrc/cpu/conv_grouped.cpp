// Depthwise and other grouped convolutions with few channels a group: no GEMM, but sums of vectors
// of neighbouring channels. Memory-bound: output rows are taken one after the other, active pixels
// read their taps by offsets that all pixels of a row share, and the fill of a row is written just
// before its sums.
#include <algorithm>

#include "cpu/conv.h"
#include "cpu/images.h"
#include "cpu/kernels/kernel_table.h"
#include "cpu/lanes.h"
#include "cpu/row_pointers.h"

namespace perfconv::cpu {
namespace {

constexpr int64_t kBlockPixels = 64;

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

template <class T, class Acc>
class GroupedForward {
 public:
  GroupedForward(const ForwardProblem& problem, const LaneBlocks<Acc>& blocks, const Acc* bias)
      : problem_(problem),
        g_(problem.geometry),
        blocks_(blocks),
        bias_(bias),
        kernel_(row_kernel<T>(kernels())) {
    // The pixels of a row all of whose taps lie inside.
    const int64_t reach = (g_.kernel_width - 1) * g_.dilation_w;
    first_inside_ = (g_.pad_left + g_.stride_w - 1) / g_.stride_w;
    const int64_t room = g_.in_width - 1 - reach + g_.pad_left;
    end_inside_ = room < 0 ? 0 : room / g_.stride_w + 1;
  }

  void run() const {
    const int64_t lines = g_.batch * g_.out_height;
    const int64_t work = g_.out_width * blocks_.count * g_.taps() * blocks_.steps;
    parallel_rows(lines, work, [&](int64_t begin, int64_t end) {
      std::vector<LaneTap> taps;
      int64_t i = problem_.active->lower_bound(begin * g_.out_width);
      for (int64_t line = begin; line < end; ++line) {
        const int64_t last = problem_.active->lower_bound((line + 1) * g_.out_width);
        run_line(line, i, last, taps);
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
    const int64_t inside = index_of(first_inside_);
    const int64_t outside = std::max(inside, index_of(end_inside_));
    for (int64_t i = begin; i < inside; ++i) run_border(line, positions[i] - first, taps);
    find_taps(line, 0, g_.kernel_width, taps);
    for (int64_t i = inside; i < outside; i += kBlockPixels) {
      run_pixels(line, positions + i, std::min(kBlockPixels, outside - i), taps);
    }
    for (int64_t i = outside; i < end; ++i) run_border(line, positions[i] - first, taps);
  }

  void run_border(int64_t line, int64_t x, std::vector<LaneTap>& taps) const {
    const int64_t left = x * g_.stride_w - g_.pad_left;
    int64_t begin = 0;
    while (begin < g_.kernel_width && left + begin * g_.dilation_w < 0) ++begin;
    int64_t end = g_.kernel_width;
    while (end > begin && left + (end - 1) * g_.dilation_w >= g_.in_width) --end;
    find_taps(line, begin, end, taps);
    const auto position = static_cast<int32_t>(line * g_.out_width + x);
    run_pixels(line, &position, 1, taps);
  }

  // The taps of a row whose line is inside the image, in the columns [begin, end) of the kernel.
  void find_taps(int64_t line, int64_t begin, int64_t end, std::vector<LaneTap>& taps) const {
    const int64_t top = line % g_.out_height * g_.stride_h - g_.pad_top;
    const int64_t weights = blocks_.block_weights / g_.taps();
    taps.clear();
    for (int64_t kh = 0; kh < g_.kernel_height; ++kh) {
      const int64_t y = top + kh * g_.dilation_h;
      if (y < 0 || y >= g_.in_height) continue;
      const int64_t row = (line / g_.out_height * g_.in_height + y) * g_.in_width;
      for (int64_t kw = begin; kw < end; ++kw) {
        taps.push_back({.offset = (row + kw * g_.dilation_w - g_.pad_left) * g_.in_channels,
                        .weight = (kh * g_.kernel_width + kw) * weights});
      }
    }
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
  const RowKernel<T, Acc>& kernel_;
  int64_t first_inside_;
  int64_t end_inside_;
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
