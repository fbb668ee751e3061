// Dense convolution through torch's dispatcher, then epilogue and fill in place.
#include "cpu/dense.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>

#include "cpu/images.h"
#include "cpu/kernels/kernel_table.h"

namespace perfconv::cpu {
namespace {

using torch::stable::detail::from;
using torch::stable::detail::to;

// Asymmetric padding (padding="same" with an even kernel) is taken out of the convolution.
Tensor padded_input(const Tensor& input, const ConvGeometry& g) {
  if (g.is_symmetric()) return input;
  return torch::stable::pad(input,
                            std::vector<int64_t>{g.pad_left, g.pad_right, g.pad_top, g.pad_bottom});
}

std::vector<int64_t> conv_padding(const ConvGeometry& g) {
  return g.is_symmetric() ? std::vector<int64_t>{g.pad_top, g.pad_left}
                          : std::vector<int64_t>{0, 0};
}

Tensor convolution(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                   const ConvGeometry& g) {
  std::array<StableIValue, 9> stack{from(padded_input(input, g)),
                                    from(weight),
                                    from(bias),
                                    from(std::vector<int64_t>{g.stride_h, g.stride_w}),
                                    from(conv_padding(g)),
                                    from(std::vector<int64_t>{g.dilation_h, g.dilation_w}),
                                    from(false),
                                    from(std::vector<int64_t>{0, 0}),
                                    from(g.groups)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::convolution", "", stack.data(), TORCH_ABI_VERSION));
  return to<Tensor>(stack[0]);
}

// Residual and activation at active pixels, in place on channels_last memory.
void finish_active(const ForwardProblem& problem) {
  if (!problem.residual && problem.activation == Activation::kNone) return;
  const int64_t channels = problem.geometry.out_channels;
  visit_dtype("perforated_conv2d", problem.output.scalar_type(), [&]<class T>() {
    using Acc = AccumulateType<T>;
    T* out = mutable_data<T>(problem.output);
    const T* residual = problem.residual ? data<T>(*problem.residual) : nullptr;
    const RowKernel<T, Acc>& row = row_kernel<T>(kernels());
    parallel_rows(problem.active->count, channels, [&](int64_t begin, int64_t end) {
      std::vector<Acc> sums(static_cast<size_t>(channels));
      for (int64_t i = begin; i < end; ++i) {
        const int64_t offset = int64_t{problem.active->positions[i]} * channels;
        const T* plus = residual != nullptr ? residual + offset : nullptr;
        T* pixel = out + offset;
        row.widen(pixel, sums.data(), channels);
        row.finish(sums.data(), channels, 1, nullptr, plus != nullptr ? &plus : nullptr,
                   problem.activation, &pixel, channels);
      }
    });
  });
}

// Zero at inactive pixels of an (N, C, H, W)-contiguous image, plane by plane.
void zero_inactive_planes(const Tensor& image, const ActiveList& active) {
  const int64_t channels = image.size(1);
  const int64_t pixels = image.size(2) * image.size(3);
  const int64_t bytes = image.element_size();
  char* to_bytes = static_cast<char*>(image.mutable_data_ptr());
  parallel_rows(image.size(0) * channels, pixels, [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane) {
      const int64_t first = plane / channels * pixels;
      char* line = to_bytes + plane * pixels * bytes;
      int64_t next = first;
      for (int64_t i = active.lower_bound(first); next < first + pixels; ++i) {
        const bool is_in_image = i < active.count && active.positions[i] < first + pixels;
        const int64_t stop = is_in_image ? active.positions[i] : first + pixels;
        zero_bytes(line + (next - first) * bytes, (stop - next) * bytes);
        next = stop + 1;
      }
    }
  });
}

}  // namespace

Tensor forward_dense(const ForwardProblem& problem, bool channels_last) {
  ForwardProblem dense = problem;
  const ConvGeometry& g = problem.geometry;
  const Tensor image = convolution(problem.input, problem.weight, problem.bias, g);
  const bool is_plain =
      problem.fill == Fill::kZero && !problem.residual && problem.activation == Activation::kNone;
  if (is_plain && !channels_last && image.is_contiguous()) {
    zero_inactive_planes(image, *problem.active);
    return image;
  }
  dense.output = to_channels_last(image);
  finish_active(dense);
  fill_inactive(dense);
  if (dense.fill == Fill::kNearest) fill_nearest(dense.output, *dense.active);
  return in_layout(dense.output, channels_last);
}

Tensor backward_dense(const GradProblem& problem, bool wants_input) {
  const ConvGeometry& g = problem.geometry;
  ForwardProblem masked;
  masked.geometry = g;
  masked.active = problem.active;
  masked.output = problem.grad_output;
  if (problem.active->count < g.out_pixels()) {
    masked.output = torch::stable::clone(problem.grad_output);
    fill_inactive(masked);
  }
  const Tensor input = wants_input ? problem.result : problem.operand;
  const Tensor weight = wants_input ? problem.operand : problem.result;
  const std::array<bool, 3> wanted{wants_input, !wants_input, false};
  std::array<StableIValue, 11> stack{
      from(masked.output),
      from(padded_input(input, g)),
      from(weight),
      from(std::optional<std::vector<int64_t>>(std::vector<int64_t>{g.out_channels})),
      from(std::vector<int64_t>{g.stride_h, g.stride_w}),
      from(conv_padding(g)),
      from(std::vector<int64_t>{g.dilation_h, g.dilation_w}),
      from(false),
      from(std::vector<int64_t>{0, 0}),
      from(g.groups),
      from(torch::headeronly::HeaderOnlyArrayRef<bool>(wanted.data(), wanted.size()))};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::convolution_backward", "", stack.data(), TORCH_ABI_VERSION));
  // The two gradients that were not asked for come back as undefined tensors.
  const Tensor grads[3] = {to<Tensor>(stack[0]), to<Tensor>(stack[1]), to<Tensor>(stack[2])};
  Tensor result = grads[wants_input ? 0 : 1];
  if (wants_input && !g.is_symmetric()) {
    result = torch::stable::narrow(result, 2, g.pad_top, g.in_height);
    result = torch::stable::narrow(result, 3, g.pad_left, g.in_width);
  }
  return result;
}

}  // namespace perfconv::cpu
