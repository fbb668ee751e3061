// Every rule the operators' tensor arguments must keep, and its message; shared by CPU and CUDA.
// A broken rule throws std::invalid_argument, which arrives in Python as ValueError. The Python
// side has checked types and dtypes before (TypeError), so a message here is about shapes, ranges
// and devices. Pattern: "op: rule, got what. What to do."
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/geometry.h"

namespace perfconv {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

template <class... Parts>
[[noreturn]] inline void fail(const char* op, const Parts&... parts) {
  std::ostringstream message;
  message << op << ": ";
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

template <class Sizes>
inline std::string shape_text(const Sizes& sizes) {
  std::ostringstream text;
  text << '(';
  for (size_t i = 0; i < sizes.size(); ++i) text << (i ? ", " : "") << sizes[i];
  text << (sizes.size() == 1 ? ",)" : ")");
  return text.str();
}

inline std::vector<int64_t> size_vector(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return {sizes.begin(), sizes.end()};
}

inline bool has_shape(const Tensor& tensor, const std::vector<int64_t>& shape) {
  const auto sizes = tensor.sizes();
  if (sizes.size() != shape.size()) return false;
  for (size_t i = 0; i < shape.size(); ++i) {
    if (sizes[i] != shape[i]) return false;
  }
  return true;
}

inline void check_shape(const char* op, const char* name, const char* letters, const Tensor& tensor,
                        const std::vector<int64_t>& shape) {
  if (!has_shape(tensor, shape)) {
    fail(op, name, " must be ", letters, " = ", shape_text(shape), ", got ",
         shape_text(tensor.sizes()), ". Give it that shape.");
  }
}

inline void check_rank(const char* op, const char* name, const char* letters, const Tensor& tensor,
                       int64_t rank) {
  if (tensor.dim() != rank) {
    fail(op, name, " must be ", letters, ", got ", shape_text(tensor.sizes()), ". Give it ", rank,
         " dimensions.");
  }
}

// Same device as the first tensor argument.
inline void check_device(const char* op, const char* name, const Tensor& tensor, const char* first,
                         const Tensor& reference) {
  if (tensor.is_cuda() != reference.is_cuda() || tensor.get_device() != reference.get_device()) {
    fail(op, name, " must be on the device of ", first, ", got another. Move it with ", name,
         ".to(", first, ".device).");
  }
}

// Same device and dtype as the first tensor argument.
inline void check_like(const char* op, const char* name, const Tensor& tensor, const char* first,
                       const Tensor& reference) {
  check_device(op, name, tensor, first, reference);
  if (tensor.scalar_type() != reference.scalar_type()) {
    fail(op, name, " must have the dtype of ", first, ", ", toString(reference.scalar_type()),
         ", got ", toString(tensor.scalar_type()), ". Convert it with ", name, ".to(", first,
         ".dtype).");
  }
}

inline void check_floating(const char* op, const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
    case ScalarType::Double:
    case ScalarType::BFloat16:
    case ScalarType::Half:
      return;
    default:
      fail(op, name, " must be float32, float64, bfloat16 or float16, got ",
           toString(tensor.scalar_type()), ". Convert it with ", name, ".float().");
  }
}

inline void check_bool(const char* op, const Tensor& mask) {
  if (mask.scalar_type() != ScalarType::Bool) {
    fail(op, "mask must be bool (True = compute), got ", toString(mask.scalar_type()),
         ". Convert it with mask > 0.");
  }
}

// A mask (N, 1, H, W) on its own.
inline void check_mask_image(const char* op, const Tensor& mask, const char* letters) {
  check_bool(op, mask);
  if (mask.dim() != 4 || mask.size(1) != 1) {
    fail(op, "mask must be ", letters, ", got ", shape_text(mask.sizes()),
         ". Give it one channel, as in mask[:, None].");
  }
}

inline void check_mask(const char* op, const Tensor& mask, const Tensor& reference) {
  check_bool(op, mask);
  if (mask.is_cuda() != reference.is_cuda() || mask.get_device() != reference.get_device()) {
    fail(op,
         "mask must be on the device of the other tensors, got another. Move it with "
         "mask.to(input.device).");
  }
}

// mask (N or 1, 1, height, width) on the output grid; other grids are named in the message.
inline void check_mask_shape(const char* op, const Tensor& mask, int64_t batch, int64_t height,
                             int64_t width) {
  if (mask.dim() == 4 && (mask.size(0) == batch || mask.size(0) == 1) && mask.size(1) == 1 &&
      mask.size(2) == height && mask.size(3) == width) {
    return;
  }
  fail(op, "mask must be (N or 1, 1, H_out, W_out) = (", batch, ", 1, ", height, ", ", width,
       ") for this input, got ", shape_text(mask.sizes()),
       ". Masks live on the output grid; use perfconv.downsample_mask.");
}

inline void check_length(const char* op, const char* name, const std::vector<int64_t>& values,
                         size_t length) {
  if (values.size() != length) {
    fail(op, name, " must have ", length, " integers, got ", shape_text(values),
         ". Give one for each side.");
  }
}

// Positive and small enough that no product below can overflow.
inline void check_range(const char* op, const char* name, const std::vector<int64_t>& values,
                        int64_t low) {
  constexpr int64_t kHigh = int64_t{1} << 30;
  for (const int64_t value : values) {
    if (value < low || value > kHigh) {
      fail(op, name, " must be ", low == 0 ? "0 or more" : "1 or more", " (and below 2^30), got ",
           shape_text(values), ". Give it in pixels.");
    }
  }
}

inline void check_groups(const char* op, int64_t out_channels, int64_t groups) {
  if (groups < 1 || out_channels % groups != 0) {
    fail(op, "groups must be 1 or more and divide C_out = ", out_channels, ", got ", groups,
         ". Change groups, or the weight.");
  }
}

inline int64_t output_length(int64_t input, int64_t before, int64_t after, int64_t kernel,
                             int64_t dilation, int64_t stride) {
  const int64_t span = dilation * (kernel - 1) + 1;
  const int64_t room = input + before + after - span;
  return room < 0 ? -1 : room / stride + 1;
}

// A weight shape (C_out, C_in / groups, K_h, K_w).
inline void check_weight(const char* op, const std::vector<int64_t>& weight, int64_t groups) {
  if (weight[0] < 1 || weight[1] < 1 || weight[2] < 1 || weight[3] < 1) {
    fail(op, "weight must be (C_out, C_in / groups, K_h, K_w) with no empty side, got ",
         shape_text(weight), ". Give at least one channel and one tap.");
  }
  check_groups(op, weight[0], groups);
  check_range(op, "kernel (K_h, K_w)", {weight[2], weight[3]}, 1);
}

// Sizes from an input shape (N, C, H, W) and a weight shape, with every rule about them.
// padding is (top, bottom, left, right).
inline ConvGeometry make_geometry(const char* op, const std::vector<int64_t>& input,
                                  const std::vector<int64_t>& weight,
                                  const std::vector<int64_t>& stride,
                                  const std::vector<int64_t>& padding,
                                  const std::vector<int64_t>& dilation, int64_t groups) {
  check_length(op, "stride", stride, 2);
  check_length(op, "padding", padding, 4);
  check_length(op, "dilation", dilation, 2);
  check_range(op, "stride", stride, 1);
  check_range(op, "padding", padding, 0);
  check_range(op, "dilation", dilation, 1);
  check_range(op, "input size (H, W)", {input[2], input[3]}, 0);
  check_weight(op, weight, groups);
  if (input[1] != weight[1] * groups) {
    fail(op, "input must have C_in = weight.size(1) * groups = ", weight[1] * groups,
         " channels, got ", input[1], ". Change the input, the weight or groups.");
  }
  ConvGeometry g{.batch = input[0],
                 .in_channels = input[1],
                 .in_height = input[2],
                 .in_width = input[3],
                 .out_channels = weight[0],
                 .kernel_height = weight[2],
                 .kernel_width = weight[3],
                 .stride_h = stride[0],
                 .stride_w = stride[1],
                 .pad_top = padding[0],
                 .pad_left = padding[2],
                 .pad_bottom = padding[1],
                 .pad_right = padding[3],
                 .dilation_h = dilation[0],
                 .dilation_w = dilation[1],
                 .groups = groups};
  g.out_height = output_length(g.in_height, g.pad_top, g.pad_bottom, g.kernel_height, g.dilation_h,
                               g.stride_h);
  g.out_width =
      output_length(g.in_width, g.pad_left, g.pad_right, g.kernel_width, g.dilation_w, g.stride_w);
  if (g.out_height < 1 || g.out_width < 1) {
    fail(op, "the kernel must fit into the padded input, got (H, W) = (", g.in_height, ", ",
         g.in_width, ") with padding ", shape_text(padding), " and a kernel ",
         shape_text(std::vector<int64_t>{weight[2], weight[3]}), " at dilation ",
         shape_text(dilation), ". Pad more, or take a smaller kernel.");
  }
  // Divisions instead of a product that could overflow.
  constexpr int64_t kPixels = (int64_t{1} << 31) - 1;
  if (g.out_height > kPixels / g.out_width || g.batch > kPixels / (g.out_height * g.out_width)) {
    fail(op, "N * H_out * W_out must be below 2^31, got ", g.batch, " * ", g.out_height, " * ",
         g.out_width, ". Split the batch.");
  }
  return g;
}

inline Fill parse_fill(const char* op, const std::string& name) {
  if (name == "zero") return Fill::kZero;
  if (name == "nearest") return Fill::kNearest;
  if (name == "passthrough") return Fill::kPassthrough;
  if (name == "none") return Fill::kNone;
  fail(op, "fill must be \"zero\", \"nearest\", \"passthrough\" or \"none\", got \"", name,
       "\". Choose one of these.");
}

inline Activation parse_activation(const char* op, const std::string& name) {
  if (name == "none") return Activation::kNone;
  if (name == "relu") return Activation::kRelu;
  if (name == "relu6") return Activation::kRelu6;
  if (name == "silu") return Activation::kSilu;
  if (name == "hardswish") return Activation::kHardswish;
  fail(op, "activation must be \"none\", \"relu\", \"relu6\", \"silu\" or \"hardswish\", got \"",
       name, "\". Choose one of these.");
}

inline ConvAlgorithm parse_algorithm(const char* op, const std::string& name) {
  if (name == "auto") return ConvAlgorithm::kAuto;
  if (name == "direct") return ConvAlgorithm::kDirect;
  if (name == "gather_gemm") return ConvAlgorithm::kGatherGemm;
  if (name == "implicit_gemm") return ConvAlgorithm::kImplicitGemm;
  if (name == "dense") return ConvAlgorithm::kDense;
  fail(op,
       "algorithm must be \"auto\", \"direct\", \"gather_gemm\", \"implicit_gemm\" or \"dense\", "
       "got \"",
       name, "\". Choose one of these.");
}

}  // namespace perfconv
