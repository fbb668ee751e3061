// Gradients of perforated_conv2d on the CPU: dgrad, wgrad, and the sum over active pixels that is
// the gradient of the bias.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>

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

Tensor dgrad(const Tensor& grad_output, const Tensor& weight, const Tensor& mask,
             const OptionalTensor& /*active_idx*/, const OptionalTensor& /*count*/,
             const std::vector<int64_t>& input_size, bool channels_last,
             const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
             const std::vector<int64_t>& dilation, int64_t groups,
             const std::string& algorithm_name) {
  constexpr const char* kOp = "perforated_conv2d_dgrad";
  check_images(kOp, grad_output, "weight", weight);
  check_length(kOp, "input_size", input_size, 2);
  check_groups(kOp, weight.size(0), groups);
  const std::vector<int64_t> input_shape{grad_output.size(0), weight.size(1) * groups,
                                         input_size[0], input_size[1]};
  const ConvGeometry g = check_grad(kOp, grad_output, "weight", weight, mask, input_shape,
                                    size_vector(weight), stride, padding, dilation, groups);
  const ActiveList active = compact(mask, g.batch);
  const GradProblem problem{.geometry = g,
                            .grad_output = to_channels_last(grad_output),
                            .operand = to_contiguous(weight),
                            .active = &active,
                            .result = empty_image(grad_output, input_shape, true)};
  Tensor result = problem.result;
  switch (choose_grad_algorithm(kOp, g, weight.scalar_type(), active.count, algorithm_name)) {
    case ConvAlgorithm::kDirect:
      dgrad_direct(problem);
      break;
    case ConvAlgorithm::kGatherGemm:
      dgrad_gather_gemm(problem);
      break;
    case ConvAlgorithm::kDense:
      result = to_channels_last(backward_dense(problem, true));
      break;
    case ConvAlgorithm::kAuto:
    case ConvAlgorithm::kImplicitGemm:
      g.is_depthwise() ? dgrad_depthwise(problem) : dgrad_implicit_gemm(problem);
      break;
  }
  return in_layout(result, channels_last);
}

Tensor wgrad(const Tensor& grad_output, const Tensor& input, const Tensor& mask,
             const OptionalTensor& /*active_idx*/, const OptionalTensor& /*count*/,
             const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
             const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
             int64_t groups, const std::string& algorithm_name) {
  constexpr const char* kOp = "perforated_conv2d_wgrad";
  check_images(kOp, grad_output, "input", input);
  check_length(kOp, "kernel_size", kernel_size, 2);
  check_groups(kOp, grad_output.size(1), groups);
  const std::vector<int64_t> weight_shape{grad_output.size(1), input.size(1) / groups,
                                          kernel_size[0], kernel_size[1]};
  const ConvGeometry g = check_grad(kOp, grad_output, "input", input, mask, size_vector(input),
                                    weight_shape, stride, padding, dilation, groups);
  const ActiveList active = compact(mask, g.batch);
  const GradProblem problem{.geometry = g,
                            .grad_output = to_channels_last(grad_output),
                            .operand = to_channels_last(input),
                            .active = &active,
                            .result = torch::stable::empty(weight_shape, input.scalar_type())};
  switch (choose_grad_algorithm(kOp, g, input.scalar_type(), active.count, algorithm_name)) {
    case ConvAlgorithm::kDirect:
      wgrad_direct(problem);
      break;
    case ConvAlgorithm::kGatherGemm:
      wgrad_gather_gemm(problem);
      break;
    case ConvAlgorithm::kDense:
      return torch::stable::contiguous(backward_dense(problem, false));
    case ConvAlgorithm::kAuto:
    case ConvAlgorithm::kImplicitGemm:
      g.is_depthwise() ? wgrad_depthwise(problem) : wgrad_implicit_gemm(problem);
      break;
  }
  return problem.result;
}

Tensor active_sum(const Tensor& values, const Tensor& mask) {
  constexpr const char* kOp = "active_sum";
  check_floating(kOp, "values", values);
  check_rank(kOp, "values", "(N, C, H, W)", values, 4);
  check_mask(kOp, mask, values);
  check_mask_shape(kOp, mask, values.size(0), values.size(2), values.size(3));
  const ActiveList active = compact(mask, values.size(0));
  const Tensor rows = to_channels_last(values);
  const int64_t channels = values.size(1);
  const Tensor result = torch::stable::empty({channels}, values.scalar_type());
  visit_dtype(kOp, values.scalar_type(), [&]<class T>() {
    using Acc = AccumulateType<T>;
    constexpr int64_t kRun = 256;  // two levels of sums keep the rounding error small
    const T* from = data<T>(rows);
    std::vector<Acc> total(static_cast<size_t>(channels), Acc(0));
    std::vector<Acc> run(static_cast<size_t>(channels));
    const RowKernel<T, Acc>& row = row_kernel<T>(kernels());
    for (int64_t begin = 0; begin < active.count; begin += kRun) {
      std::fill(run.begin(), run.end(), Acc(0));
      for (int64_t i = begin; i < std::min(begin + kRun, active.count); ++i) {
        row.add(from + int64_t{active.positions[i]} * channels, run.data(), channels);
      }
      for (int64_t c = 0; c < channels; ++c) total[c] += run[c];
    }
    row.narrow(total.data(), mutable_data<T>(result), channels);
  });
  return result;
}

}  // namespace
}  // namespace perfconv::cpu

STABLE_TORCH_LIBRARY_IMPL(perfconv, CPU, m) {
  m.impl("perforated_conv2d_dgrad", TORCH_BOX(&perfconv::cpu::dgrad));
  m.impl("perforated_conv2d_wgrad", TORCH_BOX(&perfconv::cpu::wgrad));
  m.impl("active_sum", TORCH_BOX(&perfconv::cpu::active_sum));
}
