// The dense convolution, through torch's dispatcher, on any device.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <array>
#include <vector>

#include "core/checks.h"

namespace perfconv {

// Padding that differs between opposite sides is taken out of the convolution.
inline Tensor dense_forward(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                            const ConvGeometry& g) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  const Tensor padded =
      g.is_symmetric() ? input
                       : torch::stable::pad(input, std::vector<int64_t>{g.pad_left, g.pad_right,
                                                                        g.pad_top, g.pad_bottom});
  const std::vector<int64_t> padding =
      g.is_symmetric() ? std::vector<int64_t>{g.pad_top, g.pad_left} : std::vector<int64_t>{0, 0};
  std::array<StableIValue, 9> stack{
      from(padded),  from(weight),
      from(bias),    from(std::vector<int64_t>{g.stride_h, g.stride_w}),
      from(padding), from(std::vector<int64_t>{g.dilation_h, g.dilation_w}),
      from(false),   from(std::vector<int64_t>{0, 0}),
      from(g.groups)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::convolution", "", stack.data(), TORCH_ABI_VERSION));
  return to<Tensor>(stack[0]);
}

}  // namespace perfconv
