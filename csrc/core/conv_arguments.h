// The arguments of the convolution's operators, checked into a ConvGeometry: one set of rules for
// every device.
#pragma once

#include "core/checks.h"

namespace perfconv {

inline StorageType storage_type(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double:
      return StorageType::kDouble;
    case ScalarType::BFloat16:
      return StorageType::kBFloat16;
    case ScalarType::Half:
      return StorageType::kHalf;
    default:
      return StorageType::kFloat;
  }
}

struct ForwardTensors {
  const Tensor& input;
  const Tensor& weight;
  const Tensor& mask;
  const OptionalTensor& bias;
  const OptionalTensor& base;
  const OptionalTensor& residual;
};

inline ConvGeometry check_forward(const char* op, const ForwardTensors& t,
                                  const std::vector<int64_t>& stride,
                                  const std::vector<int64_t>& padding,
                                  const std::vector<int64_t>& dilation, int64_t groups, Fill fill) {
  check_floating(op, "input", t.input);
  check_rank(op, "input", "(N, C_in, H, W)", t.input, 4);
  check_rank(op, "weight", "(C_out, C_in / groups, K_h, K_w)", t.weight, 4);
  check_like(op, "weight", t.weight, "input", t.input);
  check_mask(op, t.mask, t.input);
  const ConvGeometry g = make_geometry(op, size_vector(t.input), size_vector(t.weight), stride,
                                       padding, dilation, groups);
  check_mask_shape(op, t.mask, g.batch, g.out_height, g.out_width);
  const std::vector<int64_t> out_shape{g.batch, g.out_channels, g.out_height, g.out_width};
  if (t.bias) {
    check_like(op, "bias", *t.bias, "input", t.input);
    check_shape(op, "bias", "(C_out,)", *t.bias, {g.out_channels});
  }
  if (t.residual) {
    check_like(op, "residual", *t.residual, "input", t.input);
    check_shape(op, "residual", "(N, C_out, H_out, W_out)", *t.residual, out_shape);
  }
  if (fill == Fill::kPassthrough && !t.base) {
    fail(op,
         "fill=\"passthrough\" needs base, the (N, C_out, H_out, W_out) = ", shape_text(out_shape),
         " tensor that inactive pixels take, got none. Pass base=.");
  }
  if (fill != Fill::kPassthrough && t.base) {
    fail(op,
         "base must come with fill=\"passthrough\", got another fill. Pass that fill, or no "
         "base.");
  }
  if (t.base) {
    check_like(op, "base", *t.base, "input", t.input);
    check_shape(op, "base", "(N, C_out, H_out, W_out)", *t.base, out_shape);
  }
  return g;
}

inline ConvGeometry check_grad(const char* op, const Tensor& grad_output, const char* operand_name,
                               const Tensor& operand, const Tensor& mask,
                               const std::vector<int64_t>& input_shape,
                               const std::vector<int64_t>& weight_shape,
                               const std::vector<int64_t>& stride,
                               const std::vector<int64_t>& padding,
                               const std::vector<int64_t>& dilation, int64_t groups) {
  check_floating(op, "grad_output", grad_output);
  check_like(op, operand_name, operand, "grad_output", grad_output);
  check_mask(op, mask, grad_output);
  const ConvGeometry g =
      make_geometry(op, input_shape, weight_shape, stride, padding, dilation, groups);
  check_shape(op, "grad_output", "(N, C_out, H_out, W_out)", grad_output,
              {g.batch, g.out_channels, g.out_height, g.out_width});
  check_mask_shape(op, mask, g.batch, g.out_height, g.out_width);
  return g;
}

inline void check_images(const char* op, const Tensor& grad_output, const char* operand_name,
                         const Tensor& operand) {
  check_rank(op, "grad_output", "(N, C_out, H_out, W_out)", grad_output, 4);
  check_rank(op, operand_name, "4-D", operand, 4);
}

inline void check_compact_mask(const Tensor& mask) {
  constexpr const char* kOp = "compact_mask";
  check_mask_image(kOp, mask, "(N, 1, H, W)");
  if (mask.numel() >= (int64_t{1} << 31)) {
    fail(kOp, "N * H * W must be below 2^31, got ", mask.numel(), ". Split the batch.");
  }
}

inline ConvGeometry check_expand_mask(const Tensor& mask, const std::vector<int64_t>& kernel_size,
                                      const std::vector<int64_t>& stride,
                                      const std::vector<int64_t>& padding,
                                      const std::vector<int64_t>& dilation,
                                      const std::vector<int64_t>& input_size) {
  constexpr const char* kOp = "expand_mask";
  check_mask_image(kOp, mask, "(N, 1, H_out, W_out)");
  check_length(kOp, "kernel_size", kernel_size, 2);
  check_length(kOp, "input_size", input_size, 2);
  check_range(kOp, "kernel_size", kernel_size, 1);
  ConvGeometry g =
      make_geometry(kOp, {mask.size(0), 1, input_size[0], input_size[1]},
                    {1, 1, kernel_size[0], kernel_size[1]}, stride, padding, dilation, 1);
  if (g.out_height != mask.size(2) || g.out_width != mask.size(3)) {
    fail(kOp, "mask must be on the output grid (H_out, W_out) = (", g.out_height, ", ", g.out_width,
         ") of input_size (", g.in_height, ", ", g.in_width, "), got ", shape_text(mask.sizes()),
         ". Give the input_size of the convolution.");
  }
  return g;
}

}  // namespace perfconv
