// The gradients of the dense convolution, through torch's dispatcher, on any device.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <array>
#include <optional>
#include <vector>

#include "core/checks.h"

namespace perfconv {

struct DenseWish {
  bool input;
  bool weight;
  bool bias;
};

struct DenseGrads {
  Tensor input;
  Tensor weight;
  Tensor bias;
};

// Gradients of the convolution for a gradient that is zero at inactive pixels; those that are not
// wished for are undefined. Without a wish for the weight, input is only a shape, and without one
// for the input, weight is. Padding that differs between opposite sides is taken out of the
// convolution.
inline DenseGrads dense_backward(const Tensor& grad_output, const Tensor& input,
                                 const Tensor& weight, const ConvGeometry& g, DenseWish wish) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  const Tensor padded =
      g.is_symmetric() ? input
                       : torch::stable::pad(input, std::vector<int64_t>{g.pad_left, g.pad_right,
                                                                        g.pad_top, g.pad_bottom});
  const std::vector<int64_t> padding =
      g.is_symmetric() ? std::vector<int64_t>{g.pad_top, g.pad_left} : std::vector<int64_t>{0, 0};
  const std::array<bool, 3> wanted{wish.input, wish.weight, wish.bias};
  std::array<StableIValue, 11> stack{
      from(grad_output),
      from(padded),
      from(weight),
      from(std::optional<std::vector<int64_t>>(std::vector<int64_t>{g.out_channels})),
      from(std::vector<int64_t>{g.stride_h, g.stride_w}),
      from(padding),
      from(std::vector<int64_t>{g.dilation_h, g.dilation_w}),
      from(false),
      from(std::vector<int64_t>{0, 0}),
      from(g.groups),
      from(torch::headeronly::HeaderOnlyArrayRef<bool>(wanted.data(), wanted.size()))};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::convolution_backward", "", stack.data(), TORCH_ABI_VERSION));
  // Each result must be taken, the undefined ones too.
  DenseGrads grads{
      .input = to<Tensor>(stack[0]), .weight = to<Tensor>(stack[1]), .bias = to<Tensor>(stack[2])};
  if (wish.input && !g.is_symmetric()) {
    grads.input = torch::stable::narrow(grads.input, 2, g.pad_top, g.in_height);
    grads.input = torch::stable::narrow(grads.input, 3, g.pad_left, g.in_width);
  }
  return grads;
}

// dgrad alone (wants_input: input is only a shape), or wgrad alone (weight is only a shape).
inline Tensor dense_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                             const ConvGeometry& g, bool wants_input) {
  const DenseGrads grads =
      dense_backward(grad_output, input, weight, g,
                     DenseWish{.input = wants_input, .weight = !wants_input, .bias = false});
  return wants_input ? grads.input : grads.weight;
}

}  // namespace perfconv
