// The arguments of multi-dilation convolution, checked: one set of rules for every device.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "core/conv_arguments.h"

namespace perfconv {

// The branches of one call. Branch k is a convolution with dilation dilations[k] and same padding;
// dilation 0 copies the input.
struct MultiDilation {
  ConvGeometry geometry;  // of dilation 1
  std::vector<int64_t> dilations;
  bool is_tied = true;  // one weight for all branches

  int64_t branches() const { return static_cast<int64_t>(dilations.size()); }

  std::vector<int64_t> weight_shape() const {
    std::vector<int64_t> shape{geometry.out_channels, geometry.in_channels, geometry.kernel_height,
                               geometry.kernel_width};
    if (!is_tied) shape.insert(shape.begin(), branches());
    return shape;
  }

  ConvGeometry branch(int64_t index) const {
    ConvGeometry g = geometry;
    g.dilation_h = g.dilation_w = dilations[static_cast<size_t>(index)];
    g.pad_top = g.pad_bottom = g.kernel_height / 2 * g.dilation_h;
    g.pad_left = g.pad_right = g.kernel_width / 2 * g.dilation_w;
    return g;
  }
};

// The tensor of one branch: of several, or the only one.
inline Tensor branch_tensor(const Tensor& tensor, bool is_shared, int64_t index) {
  return is_shared ? tensor : torch::stable::select(tensor, 0, index);
}

// input (N, C_in, H, W); weight (C_out, C_in, k, k), with the number of branches before it unless
// is_tied.
inline MultiDilation check_branches(const char* op, const std::vector<int64_t>& input,
                                    const std::vector<int64_t>& weight, bool is_tied,
                                    const std::vector<int64_t>& dilations) {
  const auto branches = static_cast<int64_t>(dilations.size());
  if (branches == 0) {
    fail(op, "dilations must name one dilation or more, got none. Give one for each branch.");
  }
  check_range(op, "dilations", dilations, 0);
  if (!is_tied && weight[0] != branches) {
    fail(op, "weight must have one (C_out, C_in, k, k) for each of the ", branches,
         " dilations, got ", weight[0], ". Give as many, or one weight of 4 dimensions for all.");
  }
  const std::vector<int64_t> one(weight.end() - 4, weight.end());
  if (one[2] != one[3] || one[2] % 2 == 0) {
    fail(op, "the kernel must be square with an odd side, got ",
         shape_text(std::vector<int64_t>{one[2], one[3]}), ". Same padding needs a centre.");
  }
  const int64_t widest =
      std::max<int64_t>(1, *std::max_element(dilations.begin(), dilations.end()));
  const int64_t reach = one[2] / 2 * widest;
  make_geometry(op, input, one, {1, 1}, {reach, reach, reach, reach}, {widest, widest}, 1);
  const int64_t pad = one[2] / 2;
  const MultiDilation problem{
      .geometry = make_geometry(op, input, one, {1, 1}, {pad, pad, pad, pad}, {1, 1}, 1),
      .dilations = dilations,
      .is_tied = is_tied};
  const bool has_copy = std::find(dilations.begin(), dilations.end(), 0) != dilations.end();
  if (has_copy && one[0] != one[1]) {
    fail(op, "dilation 0 copies the input and needs C_in = C_out, got ", one[1], " and ", one[0],
         ". Change the weight, or leave this branch out.");
  }
  return problem;
}

inline void check_choice(const char* op, const Tensor& choice, const Tensor& image) {
  if (choice.is_cuda() != image.is_cuda() || choice.get_device() != image.get_device()) {
    fail(op,
         "choice must be on the device of the other tensors, got another. Move it with "
         "choice.to(input.device).");
  }
  if (choice.scalar_type() != ScalarType::Int) {
    fail(op, "choice must be int32, got ", toString(choice.scalar_type()),
         ". Convert it with choice.int().");
  }
  check_shape(op, "choice", "(N, 1, H, W)", choice,
              {image.size(0), 1, image.size(2), image.size(3)});
}

inline MultiDilation check_multi_dilation(const char* op, const Tensor& input, const Tensor& weight,
                                          const Tensor& choice, const OptionalTensor& bias,
                                          const OptionalTensor& base,
                                          const std::vector<int64_t>& dilations, Fill fill) {
  check_floating(op, "input", input);
  check_rank(op, "input", "(N, C_in, H, W)", input, 4);
  check_like(op, "weight", weight, "input", input);
  if (weight.dim() != 5) check_rank(op, "weight", "(C_out, C_in, k, k)", weight, 4);
  const MultiDilation problem =
      check_branches(op, size_vector(input), size_vector(weight), weight.dim() == 4, dilations);
  const ConvGeometry& g = problem.geometry;
  check_choice(op, choice, input);
  if (bias) {
    check_like(op, "bias", *bias, "input", input);
    if (bias->dim() == 2) {
      check_shape(op, "bias", "(K, C_out)", *bias, {problem.branches(), g.out_channels});
    } else {
      check_shape(op, "bias", "(C_out,)", *bias, {g.out_channels});
    }
  }
  const std::vector<int64_t> out_shape{g.batch, g.out_channels, g.out_height, g.out_width};
  check_base(op, base, input, out_shape, fill);
  return problem;
}

// The gradients: weight_shape is that of the weight.
inline MultiDilation check_multi_dilation_grad(const char* op, const Tensor& grad_output,
                                               const char* operand_name, const Tensor& operand,
                                               const Tensor& choice,
                                               const std::vector<int64_t>& weight_shape,
                                               const std::vector<int64_t>& dilations) {
  check_floating(op, "grad_output", grad_output);
  check_rank(op, "grad_output", "(N, C_out, H, W)", grad_output, 4);
  check_like(op, operand_name, operand, "grad_output", grad_output);
  check_choice(op, choice, grad_output);
  const size_t first = weight_shape.size() - 4;
  const std::vector<int64_t> input_shape{grad_output.size(0), weight_shape[first + 1],
                                         grad_output.size(2), grad_output.size(3)};
  const MultiDilation problem =
      check_branches(op, input_shape, weight_shape, first == 0, dilations);
  check_shape(op, "grad_output", "(N, C_out, H, W)", grad_output,
              {input_shape[0], problem.geometry.out_channels, input_shape[2], input_shape[3]});
  return problem;
}

inline MultiDilation check_multi_dilation_wgrad(const char* op, const Tensor& grad_output,
                                                const Tensor& input, const Tensor& choice,
                                                int64_t kernel_size,
                                                const std::vector<int64_t>& dilations,
                                                bool is_tied) {
  check_images(op, grad_output, "input", input);
  std::vector<int64_t> weight_shape{grad_output.size(1), input.size(1), kernel_size, kernel_size};
  if (!is_tied) weight_shape.insert(weight_shape.begin(), static_cast<int64_t>(dilations.size()));
  const MultiDilation problem =
      check_multi_dilation_grad(op, grad_output, "input", input, choice, weight_shape, dilations);
  const ConvGeometry& g = problem.geometry;
  check_shape(op, "input", "(N, C_in, H, W)", input,
              {g.batch, g.in_channels, g.in_height, g.in_width});
  return problem;
}

}  // namespace perfconv
