// perforated_conv2d, and into an image in place, on the CPU: checks, layout, choice of the
// algorithm, fills.
#include "cpu/conv.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "core/conv_arguments.h"
#include "cpu/dense.h"
#include "cpu/images.h"
#include "cpu/planner.h"

namespace perfconv::cpu {
namespace {

void run_sparse(const ForwardProblem& problem, ConvAlgorithm algorithm) {
  if (algorithm == ConvAlgorithm::kImplicitGemm) {
    forward_fits_lanes(problem.geometry, problem.input.scalar_type())
        ? forward_grouped(problem)
        : forward_implicit_gemm(problem);
  } else {
    algorithm == ConvAlgorithm::kDirect ? forward_direct(problem) : forward_gather_gemm(problem);
    fill_inactive(problem);
  }
  if (problem.fill == Fill::kNearest) fill_nearest(problem.output, *problem.active);
}

}  // namespace

Tensor convolve(ForwardProblem problem, ConvAlgorithm wanted, bool channels_last) {
  const ConvGeometry& g = problem.geometry;
  const StorageType storage = storage_type(problem.input.scalar_type());
  const ConvAlgorithm chosen = choose_algorithm(g, storage, problem.active->count, wanted);
  if (chosen == ConvAlgorithm::kDense) return forward_dense(problem, channels_last);
  // Packing reads a weight as it lies; every other algorithm reads it in order.
  const bool reads_packs =
      chosen == ConvAlgorithm::kImplicitGemm && !forward_fits_lanes(g, problem.input.scalar_type());
  if (!reads_packs) problem.weight = to_contiguous(problem.weight);
  problem.input = to_channels_last(problem.input);
  if (!problem.output.defined()) {
    problem.output =
        empty_image(problem.input, {g.batch, g.out_channels, g.out_height, g.out_width}, true);
  }
  run_sparse(problem, chosen);
  return in_layout(problem.output, channels_last);
}

namespace {

Tensor perforated_conv2d(const Tensor& input, const Tensor& weight, const Tensor& mask,
                         const OptionalTensor& bias, const OptionalTensor& base,
                         const OptionalTensor& residual, const OptionalTensor& /*active_idx*/,
                         const OptionalTensor& /*count*/, const OptionalTensor& packed_weight,
                         const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                         const std::vector<int64_t>& dilation, int64_t groups,
                         const std::string& fill_name, const std::string& activation_name,
                         bool activate_base, std::optional<double> /*expected_density*/,
                         const std::string& algorithm_name, bool /*allow_tf32*/) {
  constexpr const char* kOp = "perforated_conv2d";
  const Fill fill = parse_fill(kOp, fill_name);
  const Activation activation = parse_activation(kOp, activation_name);
  const ConvAlgorithm wanted = parse_algorithm(kOp, algorithm_name);
  const ConvGeometry g = check_forward(kOp, {input, weight, mask, bias, base, residual}, stride,
                                       padding, dilation, groups, fill);
  if (packed_weight) check_floating(kOp, "packed_weight", *packed_weight);
  const ActiveList active = compact(mask, g.batch);
  return convolve(
      {.geometry = g,
       .input = input,
       .weight = weight,
       .packed = packed_weight,
       .bias = bias ? OptionalTensor(in_order(*bias)) : std::nullopt,
       .residual = residual ? OptionalTensor(to_channels_last(*residual)) : std::nullopt,
       .base = base ? OptionalTensor(to_channels_last(*base)) : std::nullopt,
       .fill = fill,
       .activation = activation,
       .base_activation = activate_base ? activation : Activation::kNone,
       .active = &active,
       .output = {}},
      wanted, is_channels_last(input));
}

void perforated_conv2d_into(const Tensor& base, const Tensor& input, const Tensor& weight,
                            const Tensor& mask, const OptionalTensor& bias,
                            const OptionalTensor& /*active_idx*/, const OptionalTensor& /*count*/,
                            const OptionalTensor& packed_weight, const std::vector<int64_t>& stride,
                            const std::vector<int64_t>& padding,
                            const std::vector<int64_t>& dilation, int64_t groups,
                            const std::string& activation_name, bool adds_base, bool activate_base,
                            std::optional<double> /*expected_density*/,
                            const std::string& algorithm_name, bool /*allow_tf32*/) {
  constexpr const char* kOp = "perforated_conv2d_into";
  const Activation activation = parse_activation(kOp, activation_name);
  const ConvAlgorithm wanted = parse_algorithm(kOp, algorithm_name);
  const ConvGeometry g = check_forward_into(kOp, base, {input, weight, mask, bias, base, {}},
                                            stride, padding, dilation, groups);
  const ActiveList active = compact(mask, g.batch);
  const Tensor rows = to_channels_last(base);
  convolve({.geometry = g,
            .input = input,
            .weight = weight,
            .packed = packed_weight,
            .bias = bias ? OptionalTensor(in_order(*bias)) : std::nullopt,
            .residual = adds_base ? OptionalTensor(rows) : std::nullopt,
            .base = rows,
            .fill = activate_base ? Fill::kPassthrough : Fill::kNone,
            .activation = activation,
            .base_activation = activate_base ? activation : Activation::kNone,
            .active = &active,
            .output = rows},
           wanted, true);
  if (rows.const_data_ptr() != base.const_data_ptr()) {
    Tensor target = base;
    torch::stable::copy_(target, rows);
  }
}

}  // namespace
}  // namespace perfconv::cpu

STABLE_TORCH_LIBRARY_IMPL(perfconv, CPU, m) {
  m.impl("perforated_conv2d", TORCH_BOX(&perfconv::cpu::perforated_conv2d));
  m.impl("perforated_conv2d_into", TORCH_BOX(&perfconv::cpu::perforated_conv2d_into));
}
