// Depthwise convolution (one input and one output channel per group): no GEMM, a weighted sum of
// rows. Memory-bound: each active pixel reads its taps once, vectorised along the channels.
#include <algorithm>

#include "cpu/conv.h"
#include "cpu/images.h"
#include "cpu/kernels/kernel_table.h"
#include "cpu/row_pointers.h"

namespace perfconv::cpu {
namespace {

constexpr int64_t kBlockPixels = 32;

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

void forward_depthwise(const ForwardProblem& problem) {
  const ConvGeometry& g = problem.geometry;
  const int64_t channels = g.out_channels;
  visit_dtype("perforated_conv2d", problem.input.scalar_type(), [&]<class T>() {
    using Acc = AccumulateType<T>;
    const std::vector<Acc> weight = tap_major<T, Acc>(problem.weight, channels, g.taps());
    std::vector<Acc> bias;
    if (problem.bias) {
      bias.resize(static_cast<size_t>(channels));
      convert_row(data<T>(*problem.bias), bias.data(), channels);
    }
    const T* residual = problem.residual ? data<T>(*problem.residual) : nullptr;
    T* out = mutable_data<T>(problem.output);
    const RowKernel<T, Acc>& row = row_kernel<T>(kernels());
    const int64_t pixels = g.out_pixels();
    parallel_rows(pixels, channels * g.taps() / 4, [&](int64_t begin, int64_t end) {
      fill_inactive(problem, begin, end);
      TapPointers<T> pointers(g, data<T>(problem.input), nullptr, 1);
      std::vector<Acc> sums(static_cast<size_t>(kBlockPixels * channels));
      const int64_t last = problem.active->lower_bound(end);
      for (int64_t i = problem.active->lower_bound(begin); i < last; i += kBlockPixels) {
        const int64_t count = std::min(kBlockPixels, last - i);
        const int32_t* positions = problem.active->positions.get() + i;
        pointers.fill(positions, count, 0);
        row.depthwise(pointers.tile(0), count, g.taps(), weight.data(), sums.data(), channels);
        T* to[kBlockPixels];
        const T* plus[kBlockPixels];
        for (int64_t m = 0; m < count; ++m) {
          to[m] = out + positions[m] * channels;
          if (residual != nullptr) plus[m] = residual + positions[m] * channels;
        }
        row.finish(sums.data(), channels, count, problem.bias ? bias.data() : nullptr,
                   residual != nullptr ? plus : nullptr, problem.activation, to, channels);
      }
    });
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
