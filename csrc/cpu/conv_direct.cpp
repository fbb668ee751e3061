// The convolution as its definition reads, for any shape: the reference the other algorithms are
// compared with. out[p, n] = bias[n] + sum over taps t and channels c of in[p + t, c] w[n, c, t].
#include "cpu/conv.h"
#include "cpu/images.h"
#include "cpu/kernels/kernel_table.h"

namespace perfconv::cpu {
namespace {

// Calls function(tap, flat input pixel) for the taps of an output pixel that lie in the image.
template <class Function>
void visit_taps(const ConvGeometry& g, int64_t position, Function function) {
  const Receptive field = receptive_field(g, position);
  for (int64_t kh = 0; kh < g.kernel_height; ++kh) {
    const int64_t y = field.y + kh * g.dilation_h;
    if (y < 0 || y >= g.in_height) continue;
    for (int64_t kw = 0; kw < g.kernel_width; ++kw) {
      const int64_t x = field.x + kw * g.dilation_w;
      if (x < 0 || x >= g.in_width) continue;
      function(kh * g.kernel_width + kw, (field.image * g.in_height + y) * g.in_width + x);
    }
  }
}

}  // namespace

void forward_direct(const ForwardProblem& problem) {
  const ConvGeometry& g = problem.geometry;
  visit_dtype("perforated_conv2d", problem.input.scalar_type(), [&]<class T>() {
    using Acc = AccumulateType<T>;
    const T* in = data<T>(problem.input);
    const T* weight = data<T>(problem.weight);
    const T* bias = problem.bias ? data<T>(*problem.bias) : nullptr;
    const T* residual = problem.residual ? data<T>(*problem.residual) : nullptr;
    T* out = mutable_data<T>(problem.output);
    const int64_t depth = g.group_in_channels();
    const auto finish = row_kernel<T>(kernels()).finish;
    const int64_t work = g.taps() * depth * g.out_channels;
    parallel_rows(problem.active->count, work, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t position = problem.active->positions[i];
        for (int64_t n = 0; n < g.out_channels; ++n) {
          const int64_t first = n / g.group_out_channels() * depth;
          Acc sum = bias != nullptr ? Acc(to_float(bias[n])) : Acc(0);
          visit_taps(g, position, [&](int64_t tap, int64_t pixel) {
            const T* row = in + pixel * g.in_channels + first;
            for (int64_t c = 0; c < depth; ++c) {
              sum +=
                  Acc(to_float(row[c])) * Acc(to_float(weight[(n * depth + c) * g.taps() + tap]));
            }
          });
          T* to = out + position * g.out_channels + n;
          const T* plus = residual != nullptr ? residual + position * g.out_channels + n : nullptr;
          finish(&sum, 1, 1, nullptr, plus != nullptr ? &plus : nullptr, problem.activation, &to,
                 1);
        }
      }
    });
  });
}

void dgrad_direct(const GradProblem& problem) {
  const ConvGeometry& g = problem.geometry;
  visit_dtype("perforated_conv2d_dgrad", problem.result.scalar_type(), [&]<class T>() {
    using Acc = AccumulateType<T>;
    const T* grad = data<T>(problem.grad_output);
    const T* weight = data<T>(problem.operand);
    const int64_t depth = g.group_in_channels();
    const int64_t width = g.group_out_channels();
    std::vector<Acc> sums(static_cast<size_t>(g.in_pixels() * g.in_channels), Acc(0));
    const int64_t work = problem.active->count * g.taps() * width;
    // Threads share channels, not pixels: every sum has one owner and a fixed order.
    parallel_rows(g.in_channels, work, [&](int64_t begin, int64_t end) {
      for (int64_t i = 0; i < problem.active->count; ++i) {
        const int64_t position = problem.active->positions[i];
        visit_taps(g, position, [&](int64_t tap, int64_t pixel) {
          for (int64_t channel = begin; channel < end; ++channel) {
            const int64_t group = channel / depth;
            const int64_t c = channel - group * depth;
            const T* row = grad + position * g.out_channels + group * width;
            Acc sum = 0;
            for (int64_t n = 0; n < width; ++n) {
              sum += Acc(to_float(row[n])) *
                     Acc(to_float(weight[((group * width + n) * depth + c) * g.taps() + tap]));
            }
            sums[pixel * g.in_channels + channel] += sum;
          }
        });
      }
    });
    row_kernel<T>(kernels()).narrow(sums.data(), mutable_data<T>(problem.result),
                                    g.in_pixels() * g.in_channels);
  });
}

void wgrad_direct(const GradProblem& problem) {
  const ConvGeometry& g = problem.geometry;
  visit_dtype("perforated_conv2d_wgrad", problem.result.scalar_type(), [&]<class T>() {
    using Acc = AccumulateType<T>;
    const T* grad = data<T>(problem.grad_output);
    const T* in = data<T>(problem.operand);
    T* result = mutable_data<T>(problem.result);
    const int64_t depth = g.group_in_channels();
    const int64_t work = problem.active->count * g.taps() * depth;
    parallel_rows(g.out_channels, work, [&](int64_t begin, int64_t end) {
      std::vector<Acc> sums(static_cast<size_t>(depth * g.taps()));
      for (int64_t n = begin; n < end; ++n) {
        const int64_t first = n / g.group_out_channels() * depth;
        std::fill(sums.begin(), sums.end(), Acc(0));
        for (int64_t i = 0; i < problem.active->count; ++i) {
          const int64_t position = problem.active->positions[i];
          const Acc value = Acc(to_float(grad[position * g.out_channels + n]));
          visit_taps(g, position, [&](int64_t tap, int64_t pixel) {
            const T* row = in + pixel * g.in_channels + first;
            for (int64_t c = 0; c < depth; ++c) {
              sums[c * g.taps() + tap] += value * Acc(to_float(row[c]));
            }
          });
        }
        row_kernel<T>(kernels()).narrow(sums.data(), result + n * depth * g.taps(),
                                        depth * g.taps());
      }
    });
  });
}

}  // namespace perfconv::cpu
