// Gradients of perforated_conv2d on the CPU: dgrad, wgrad, the sum over active pixels that is the
// gradient of the bias, and all three at once.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "core/conv_arguments.h"
#include "cpu/conv.h"
#include "cpu/dense.h"
#include "cpu/images.h"
#include "cpu/kernels/kernel_table.h"
#include "cpu/planner.h"

namespace perfconv::cpu {
namespace {

// Gradients through torch's convolution above break-even; otherwise as named, auto = implicit.
ConvAlgorithm choose_grad_algorithm(const char* op, const ConvGeometry& g, ScalarType dtype,
                                    int64_t active, const std::string& name) {
  const ConvAlgorithm wanted = parse_algorithm(op, name);
  return choose_algorithm(g, storage_type(dtype), active, wanted, Pass::kBackward);
}

using Gradient = void (*)(const GradProblem&);

// What computes it, whose name the algorithm is. Only the implicit GEMM reads weights as packs,
// made from any memory format, and writes their gradient in any.
Gradient dgrad_of(ConvAlgorithm algorithm, const ConvGeometry& g, ScalarType dtype) {
  if (algorithm == ConvAlgorithm::kDirect) return dgrad_direct;
  if (algorithm == ConvAlgorithm::kGatherGemm) return dgrad_gather_gemm;
  if (dgrad_fits_lanes(g, dtype)) return dgrad_grouped;
  return g.is_depthwise() ? dgrad_depthwise : dgrad_implicit_gemm;
}

Gradient wgrad_of(ConvAlgorithm algorithm, const ConvGeometry& g, ScalarType dtype) {
  if (algorithm == ConvAlgorithm::kDirect) return wgrad_direct;
  if (algorithm == ConvAlgorithm::kGatherGemm) return wgrad_gather_gemm;
  if (forward_fits_lanes(g, dtype)) return wgrad_grouped;
  return g.is_depthwise() ? wgrad_depthwise : wgrad_implicit_gemm;
}

Tensor sparse_dgrad(const GradProblem& given, ConvAlgorithm algorithm) {
  const ConvGeometry& g = given.geometry;
  GradProblem problem = given;
  const Gradient dgrad = dgrad_of(algorithm, g, given.grad_output.scalar_type());
  if (dgrad != dgrad_implicit_gemm) problem.operand = to_contiguous(given.operand);
  problem.result =
      empty_image(given.grad_output, {g.batch, g.in_channels, g.in_height, g.in_width}, true);
  dgrad(problem);
  return problem.result;
}

// Contiguous, or channels_last where the implicit GEMM was asked for that.
Tensor sparse_wgrad(const GradProblem& given, ConvAlgorithm algorithm, bool channels_last) {
  const ConvGeometry& g = given.geometry;
  GradProblem problem = given;
  const Gradient wgrad = wgrad_of(algorithm, g, given.operand.scalar_type());
  problem.operand = to_channels_last(given.operand);
  problem.result = empty_image(
      given.operand, {g.out_channels, g.group_in_channels(), g.kernel_height, g.kernel_width},
      channels_last && wgrad == wgrad_implicit_gemm);
  wgrad(problem);
  return problem.result;
}

// Sum over the active pixels, for each channel. Runs of fixed length are summed on their own and
// then added in order: the same bits for any number of threads, and a small rounding error.
Tensor sum_active(const char* op, const Tensor& rows, const ActiveList& active) {
  constexpr int64_t kRun = 256;
  const int64_t channels = rows.size(1);
  const int64_t runs = (active.count + kRun - 1) / kRun;
  const Tensor result = torch::stable::empty({channels}, rows.scalar_type());
  visit_dtype(op, rows.scalar_type(), [&]<class T>() {
    using Acc = AccumulateType<T>;
    const T* from = data<T>(rows);
    const RowKernel<T, Acc>& row = row_kernel<T>(kernels());
    std::vector<Acc> sums(static_cast<size_t>((runs + 1) * channels), Acc(0));
    parallel_rows(runs, kRun * channels / 16, [&](int64_t begin, int64_t end) {
      for (int64_t run = begin; run < end; ++run) {
        row.add_pixels(from, active.positions.get() + run * kRun,
                       std::min(kRun, active.count - run * kRun),
                       sums.data() + (run + 1) * channels, channels);
      }
    });
    for (int64_t i = channels; i < (runs + 1) * channels; ++i) sums[i % channels] += sums[i];
    row.narrow(sums.data(), mutable_data<T>(result), channels);
  });
  return result;
}

Tensor dgrad(const Tensor& grad_output, const Tensor& weight, const Tensor& mask,
             const OptionalTensor& /*active_idx*/, const OptionalTensor& /*count*/,
             const std::vector<int64_t>& input_size, bool channels_last,
             const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
             const std::vector<int64_t>& dilation, int64_t groups,
             const std::string& algorithm_name, bool /*allow_tf32*/) {
  constexpr const char* kOp = "perforated_conv2d_dgrad";
  const ConvGeometry g =
      check_dgrad(kOp, grad_output, weight, mask, input_size, stride, padding, dilation, groups);
  const std::vector<int64_t> input_shape{g.batch, g.in_channels, g.in_height, g.in_width};
  const ActiveList active = compact(mask, g.batch);
  const ConvAlgorithm chosen =
      choose_grad_algorithm(kOp, g, weight.scalar_type(), active.count, algorithm_name);
  GradProblem problem{.geometry = g,
                      .grad_output = grad_output,
                      .operand = weight,
                      .active = &active,
                      .result = {}};
  if (chosen == ConvAlgorithm::kDense) {
    const Tensor input = empty_image(grad_output, input_shape, channels_last);  // not read
    const DenseGrads grads =
        backward_dense(g, grad_output, input, weight, active, DenseWish{true, false, false});
    return in_layout(to_channels_last(grads.input), channels_last);
  }
  problem.grad_output = to_channels_last(grad_output);
  return in_layout(sparse_dgrad(problem, chosen), channels_last);
}

Tensor wgrad(const Tensor& grad_output, const Tensor& input, const Tensor& mask,
             const OptionalTensor& /*active_idx*/, const OptionalTensor& /*count*/,
             const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
             const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
             int64_t groups, const std::string& algorithm_name, bool /*allow_tf32*/) {
  constexpr const char* kOp = "perforated_conv2d_wgrad";
  const ConvGeometry g =
      check_wgrad(kOp, grad_output, input, mask, kernel_size, stride, padding, dilation, groups);
  const std::vector<int64_t> weight_shape{g.out_channels, g.group_in_channels(), g.kernel_height,
                                          g.kernel_width};
  const ActiveList active = compact(mask, g.batch);
  const ConvAlgorithm chosen =
      choose_grad_algorithm(kOp, g, input.scalar_type(), active.count, algorithm_name);
  if (chosen == ConvAlgorithm::kDense) {
    const Tensor weight = torch::stable::empty(weight_shape, input.scalar_type());  // not read
    const DenseGrads grads =
        backward_dense(g, grad_output, input, weight, active, DenseWish{false, true, false});
    return in_order(grads.weight);
  }
  const GradProblem problem{.geometry = g,
                            .grad_output = to_channels_last(grad_output),
                            .operand = input,
                            .active = &active,
                            .result = {}};
  return sparse_wgrad(problem, chosen, false);
}

// All gradients of one call: one compaction, one dY in rows, one set of checks.
std::tuple<Tensor, Tensor, Tensor> backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Tensor& mask,
    const OptionalTensor& /*active_idx*/, const OptionalTensor& /*count*/,
    const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
    const std::vector<int64_t>& dilation, int64_t groups, bool wants_bias,
    const std::string& algorithm_name, bool /*allow_tf32*/) {
  constexpr const char* kOp = "perforated_conv2d_backward";
  const ConvGeometry g =
      check_backward(kOp, grad_output, input, weight, mask, stride, padding, dilation, groups);
  const ActiveList active = compact(mask, g.batch);
  const ConvAlgorithm chosen =
      choose_grad_algorithm(kOp, g, input.scalar_type(), active.count, algorithm_name);
  DenseGrads grads;
  if (chosen == ConvAlgorithm::kDense) {
    grads =
        backward_dense(g, grad_output, input, weight, active, DenseWish{true, true, wants_bias});
    grads.input = to_channels_last(grads.input);
  } else {
    GradProblem problem{.geometry = g,
                        .grad_output = to_channels_last(grad_output),
                        .operand = weight,
                        .active = &active,
                        .result = {}};
    grads.input = sparse_dgrad(problem, chosen);
    if (wants_bias) grads.bias = sum_active(kOp, problem.grad_output, active);
    problem.operand = input;
    grads.weight = sparse_wgrad(problem, chosen, is_channels_last(weight));
  }
  if (!wants_bias) grads.bias = torch::stable::empty({0}, grad_output.scalar_type());
  grads.weight = is_channels_last(weight) ? to_channels_last(grads.weight) : in_order(grads.weight);
  return {in_layout(grads.input, is_channels_last(input)), grads.weight, grads.bias};
}

Tensor active_sum(const Tensor& values, const Tensor& mask) {
  constexpr const char* kOp = "active_sum";
  check_floating(kOp, "values", values);
  check_rank(kOp, "values", "(N, C, H, W)", values, 4);
  check_mask(kOp, mask, values);
  check_mask_shape(kOp, mask, values.size(0), values.size(2), values.size(3));
  return sum_active(kOp, to_channels_last(values), compact(mask, values.size(0)));
}

}  // namespace
}  // namespace perfconv::cpu

STABLE_TORCH_LIBRARY_IMPL(perfconv, CPU, m) {
  m.impl("perforated_conv2d_dgrad", TORCH_BOX(&perfconv::cpu::dgrad));
  m.impl("perforated_conv2d_wgrad", TORCH_BOX(&perfconv::cpu::wgrad));
  m.impl("perforated_conv2d_backward", TORCH_BOX(&perfconv::cpu::backward));
  m.impl("active_sum", TORCH_BOX(&perfconv::cpu::active_sum));
}
