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

// base comes with the passthrough fill, in the shape of the output, and only then.
inline void check_base(const char* op, const OptionalTensor& base, const Tensor& input,
                       const std::vector<int64_t>& out_shape, Fill fill) {
  if (fill == Fill::kPassthrough && !base) {
    fail(op,
         "fill=\"passthrough\" needs base, the (N, C_out, H_out, W_out) = ", shape_text(out_shape),
         " tensor that inactive pixels take, got none. Pass base=.");
  }
  if (fill != Fill::kPassthrough && base) {
    fail(op,
         "base must come with fill=\"passthrough\", got another fill. Pass that fill, or no "
         "base.");
  }
  if (base) {
    check_like(op, "base", *base, "input", input);
    check_shape(op, "base", "(N, C_out, H_out, W_out)", *base, out_shape);
  }
}

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
  check_base(op, t.base, t.input, out_shape, fill);
  return g;
}

// The bytes from the first element of a tensor to the end of its last one.
struct MemoryRange {
  const char* begin = nullptr;
  const char* end = nullptr;

  explicit MemoryRange(const Tensor& tensor) {
    if (tensor.numel() == 0) return;
    int64_t last = 0;
    for (int64_t i = 0; i < tensor.dim(); ++i) last += (tensor.size(i) - 1) * tensor.stride(i);
    begin = static_cast<const char*>(tensor.const_data_ptr());
    end = begin + (last + 1) * tensor.element_size();
  }
  bool overlaps(const MemoryRange& other) const { return begin < other.end && other.begin < end; }
};

// A convolution whose output is base itself: the other tensors lie elsewhere.
inline ConvGeometry check_forward_into(const char* op, const Tensor& base, const ForwardTensors& t,
                                       const std::vector<int64_t>& stride,
                                       const std::vector<int64_t>& padding,
                                       const std::vector<int64_t>& dilation, int64_t groups) {
  const ConvGeometry g =
      check_forward(op, t, stride, padding, dilation, groups, Fill::kPassthrough);
  const MemoryRange written(base);
  if (written.overlaps(MemoryRange(t.input)) || written.overlaps(MemoryRange(t.weight)) ||
      (t.bias && written.overlaps(MemoryRange(*t.bias)))) {
    fail(op,
         "base must not share memory with input, weight or bias, which are read while it is "
         "written, got tensors that do. Give it a copy: base.clone().");
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

// dgrad: the gradient of an input of input_size (H, W).
inline ConvGeometry check_dgrad(const char* op, const Tensor& grad_output, const Tensor& weight,
                                const Tensor& mask, const std::vector<int64_t>& input_size,
                                const std::vector<int64_t>& stride,
                                const std::vector<int64_t>& padding,
                                const std::vector<int64_t>& dilation, int64_t groups) {
  check_images(op, grad_output, "weight", weight);
  check_length(op, "input_size", input_size, 2);
  check_groups(op, weight.size(0), groups);
  return check_grad(op, grad_output, "weight", weight, mask,
                    {grad_output.size(0), weight.size(1) * groups, input_size[0], input_size[1]},
                    size_vector(weight), stride, padding, dilation, groups);
}

// wgrad: the gradient of a weight of kernel_size (K_h, K_w).
inline ConvGeometry check_wgrad(const char* op, const Tensor& grad_output, const Tensor& input,
                                const Tensor& mask, const std::vector<int64_t>& kernel_size,
                                const std::vector<int64_t>& stride,
                                const std::vector<int64_t>& padding,
                                const std::vector<int64_t>& dilation, int64_t groups) {
  check_images(op, grad_output, "input", input);
  check_length(op, "kernel_size", kernel_size, 2);
  check_groups(op, grad_output.size(1), groups);
  return check_grad(op, grad_output, "input", input, mask, size_vector(input),
                    {grad_output.size(1), input.size(1) / groups, kernel_size[0], kernel_size[1]},
                    stride, padding, dilation, groups);
}

// All gradients at once.
inline ConvGeometry check_backward(const char* op, const Tensor& grad_output, const Tensor& input,
                                   const Tensor& weight, const Tensor& mask,
                                   const std::vector<int64_t>& stride,
                                   const std::vector<int64_t>& padding,
                                   const std::vector<int64_t>& dilation, int64_t groups) {
  check_images(op, grad_output, "input", input);
  check_rank(op, "weight", "4-D", weight, 4);
  check_like(op, "weight", weight, "grad_output", grad_output);
  return check_grad(op, grad_output, "input", input, mask, size_vector(input), size_vector(weight),
                    stride, padding, dilation, groups);
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

// The list of active pixels that a caller hands over: device, types and shapes.
inline void check_list(const char* op, const Tensor& active_idx, const Tensor& count,
                       int64_t capacity, const char* first, const Tensor& reference) {
  if (active_idx.scalar_type() != ScalarType::Int || count.scalar_type() != ScalarType::Int) {
    fail(op, "active_idx and count must be int32, got ", toString(active_idx.scalar_type()),
         " and ", toString(count.scalar_type()), ". Make them with compact_mask.");
  }
  check_shape(op, "active_idx", "(N * H * W,)", active_idx, {capacity});
  check_shape(op, "count", "(1,)", count, {1});
  check_device(op, "active_idx", active_idx, first, reference);
  check_device(op, "count", count, first, reference);
}

inline void check_gather_pixels(const Tensor& input, const Tensor& active_idx,
                                const Tensor& count) {
  constexpr const char* kOp = "gather_pixels";
  check_floating(kOp, "input", input);
  check_rank(kOp, "input", "(N, C, H, W)", input, 4);
  check_list(kOp, active_idx, count, input.size(0) * input.size(2) * input.size(3), "input", input);
}

// Returns the shape of the result, (N, C, H, W).
inline std::vector<int64_t> check_scatter_pixels(const Tensor& rows, const Tensor& mask,
                                                 const Tensor& active_idx, const Tensor& count,
                                                 const OptionalTensor& base) {
  constexpr const char* kOp = "scatter_pixels";
  check_floating(kOp, "rows", rows);
  check_rank(kOp, "rows", "(capacity, C)", rows, 2);
  check_mask_image(kOp, mask, "(N, 1, H, W)");
  check_device(kOp, "mask", mask, "rows", rows);
  const int64_t channels = rows.size(1);
  check_shape(kOp, "rows", "(N * H * W, C)", rows, {mask.numel(), channels});
  const std::vector<int64_t> shape{mask.size(0), channels, mask.size(2), mask.size(3)};
  if (base) {
    check_like(kOp, "base", *base, "rows", rows);
    check_shape(kOp, "base", "(N, C, H, W)", *base, shape);
  }
  check_list(kOp, active_idx, count, mask.numel(), "rows", rows);
  return shape;
}

// name is that of the values.
inline void check_nearest(const char* op, const char* name, const Tensor& values,
                          const Tensor& mask) {
  check_floating(op, name, values);
  check_rank(op, name, "(N, C, H, W)", values, 4);
  check_mask(op, mask, values);
  check_mask_shape(op, mask, values.size(0), values.size(2), values.size(3));
}

// prefix: of the names of weight and bias.
inline void check_gate(const char* op, const Tensor& input, const Tensor& weight,
                       const OptionalTensor& bias, const std::string& prefix = "") {
  const std::string weight_name = prefix + "weight";
  const std::string bias_name = prefix + "bias";
  check_like(op, weight_name.c_str(), weight, "input", input);
  const int64_t channels = input.size(1);
  if (!has_shape(weight, {2, channels}) && !has_shape(weight, {2, channels, 1, 1})) {
    fail(op, weight_name, " must be (2, C) or (2, C, 1, 1) with C = ", channels, ", got ",
         shape_text(weight.sizes()), ". Give it one row for skipping and one for computing.");
  }
  if (bias) {
    check_like(op, bias_name.c_str(), *bias, "input", input);
    check_shape(op, bias_name.c_str(), "(2,)", *bias, {2});
  }
}

inline void check_gate_mask(const Tensor& input, const Tensor& weight, const OptionalTensor& bias) {
  constexpr const char* kOp = "gate_mask";
  check_floating(kOp, "input", input);
  check_rank(kOp, "input", "(N, C, H, W)", input, 4);
  check_gate(kOp, input, weight, bias);
  if (input.size(0) * input.size(2) * input.size(3) >= (int64_t{1} << 31)) {
    fail(kOp, "N * H * W must be below 2^31, got ", input.size(0), " * ", input.size(2), " * ",
         input.size(3), ". Split the batch.");
  }
}

}  // namespace perfconv
