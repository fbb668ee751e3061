// perforated_conv2d, and into an image in place, on CUDA: checks, layout, choice of the kernel,
// fills.
#include "core/conv_arguments.h"
#include "core/registration.h"
#include "cuda/active.h"
#include "cuda/dense.h"
#include "cuda/device_call.h"
#include "cuda/device_traits.h"
#include "cuda/gather_gemm.h"
#include "cuda/images.h"
#include "cuda/kernels/launch_sm90a.h"
#include "cuda/nearest.h"
#include "cuda/operators.h"
#include "cuda/pack.h"

namespace perfconv::cuda {
namespace {

OptionalTensor contiguous(const OptionalTensor& tensor) {
  return tensor ? OptionalTensor(torch::stable::contiguous(*tensor)) : std::nullopt;
}

// What the epilogue reads: a tensor, or none, or the output itself where that is its place.
const void* epilogue_image(DeviceCall& call, const OptionalTensor& tensor, const Tensor& output,
                           const void* written) {
  const bool is_output = tensor && tensor->const_data_ptr() == output.const_data_ptr();
  return is_output ? written : call.read(tensor);
}

void run_kernel(DeviceCall& call, ForwardArgs& args, ConvAlgorithm algorithm) {
  const DeviceTraits device = device_traits(call.context(), args, args.input, args.weight);
  switch (forward_kernel(args.geometry, device, algorithm)) {
    case ForwardKernel::kWgmma:
      args.workspace = call.scratch(forward_wgmma_workspace(call.context(), args));
      return call.check(launch_forward_wgmma(call.context(), args));
    case ForwardKernel::kTensorCore:
    case ForwardKernel::kSimt:
      args.workspace = call.scratch(forward_implicit_workspace(call.context(), args));
      return call.check(launch_forward_implicit(call.context(), args));
    case ForwardKernel::kGatherGemm:
      return forward_gather_gemm(call, args);
    case ForwardKernel::kDepthwise:
      return call.check(launch_forward_depthwise(call.context(), args));
    case ForwardKernel::kFewChannels:
      return call.check(launch_forward_few_channels(call.context(), args));
    case ForwardKernel::kDirect:
      return call.check(launch_forward_direct(call.context(), args));
  }
}

// What a convolution reads, checked; names resolved to enums.
struct Problem {
  ConvGeometry geometry;
  const ForwardTensors& tensors;
  const OptionalTensor& active_idx;
  const OptionalTensor& count;
  const OptionalTensor& packed_weight;
  Epilogue epilogue;  // without its pointers
  ConvAlgorithm wanted;
  std::optional<double> expected_density;
  bool allow_tf32;
};

// Runs a kernel into output, an image as rows of channels.
void run_into(const char* op, const Problem& problem, ConvAlgorithm chosen, const Tensor& output) {
  const ConvGeometry& g = problem.geometry;
  const ForwardTensors& t = problem.tensors;
  const Tensor rows = to_rows(t.input);
  const Tensor taps = to_rows(t.weight);
  const Tensor mask_bytes = torch::stable::contiguous(t.mask);
  const OptionalTensor bias_row = contiguous(t.bias);
  const OptionalTensor residual_rows = to_rows(t.residual);
  const OptionalTensor base_rows = to_rows(t.base);
  DeviceCall call(op, t.input);
  const CompactedMask active =
      active_pixels(call, mask_bytes, g.batch, problem.active_idx, problem.count);
  ForwardArgs args{.geometry = g,
                   .storage = storage_type(t.input.scalar_type()),
                   .allow_tf32 = problem.allow_tf32,
                   .input = call.read(rows),
                   .weight = call.read(taps),
                   .packed_weight = usable_pack(call, problem.packed_weight, taps, g, 1),
                   .epilogue = problem.epilogue,
                   .mask = mask_args(call, mask_bytes, g.batch),
                   .active = {.idx = call.read<int32_t>(active.active_idx),
                              .count = call.read<int32_t>(active.count),
                              .capacity = g.out_pixels()},
                   .output = call.write(output)};
  args.epilogue.bias = call.read(bias_row);
  args.epilogue.residual = epilogue_image(call, residual_rows, output, args.output);
  args.epilogue.base = epilogue_image(call, base_rows, output, args.output);
  run_kernel(call, args, chosen);
  if (args.epilogue.fill == Fill::kNearest) {
    fill_nearest(call, args.mask, args.storage, g.out_channels, args.output);
  }
}

ConvAlgorithm choose(const Problem& problem) {
  const DeviceTraits device{.storage = storage_type(problem.tensors.input.scalar_type()),
                            .allow_tf32 = problem.allow_tf32};
  return choose_algorithm(problem.geometry, device, problem.wanted, problem.expected_density);
}

}  // namespace

Tensor perforated_conv2d(const Tensor& input, const Tensor& weight, const Tensor& mask,
                         const OptionalTensor& bias, const OptionalTensor& base,
                         const OptionalTensor& residual, const OptionalTensor& active_idx,
                         const OptionalTensor& count, const OptionalTensor& packed_weight,
                         const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                         const std::vector<int64_t>& dilation, int64_t groups,
                         const std::string& fill_name, const std::string& activation_name,
                         bool activate_base, std::optional<double> expected_density,
                         const std::string& algorithm_name, bool allow_tf32) {
  constexpr const char* kOp = "perforated_conv2d";
  const Fill fill = parse_fill(kOp, fill_name);
  const Activation activation = parse_activation(kOp, activation_name);
  const ConvAlgorithm wanted = parse_algorithm(kOp, algorithm_name);
  const ForwardTensors tensors{input, weight, mask, bias, base, residual};
  const ConvGeometry g = check_forward(kOp, tensors, stride, padding, dilation, groups, fill);
  const Problem problem{
      .geometry = g,
      .tensors = tensors,
      .active_idx = active_idx,
      .count = count,
      .packed_weight = packed_weight,
      .epilogue = {.activation = activation,
                   .base_activation = activate_base ? activation : Activation::kNone,
                   .fill = fill},
      .wanted = wanted,
      .expected_density = expected_density,
      .allow_tf32 = allow_tf32};
  const ConvAlgorithm chosen = choose(problem);
  if (chosen == ConvAlgorithm::kDense) {
    const Tensor dense = forward_dense(kOp, tensors, g, problem.epilogue);
    return in_layout(dense, is_channels_last(input));
  }
  const Tensor output = empty_rows(input, {g.batch, g.out_channels, g.out_height, g.out_width});
  run_into(kOp, problem, chosen, output);
  return in_layout(output, is_channels_last(input));
}

void perforated_conv2d_into(const Tensor& base, const Tensor& input, const Tensor& weight,
                            const Tensor& mask, const OptionalTensor& bias,
                            const OptionalTensor& active_idx, const OptionalTensor& count,
                            const OptionalTensor& packed_weight, const std::vector<int64_t>& stride,
                            const std::vector<int64_t>& padding,
                            const std::vector<int64_t>& dilation, int64_t groups,
                            const std::string& activation_name, bool adds_base, bool activate_base,
                            std::optional<double> expected_density,
                            const std::string& algorithm_name, bool allow_tf32) {
  constexpr const char* kOp = "perforated_conv2d_into";
  const Activation activation = parse_activation(kOp, activation_name);
  const ConvAlgorithm wanted = parse_algorithm(kOp, algorithm_name);
  const OptionalTensor image = to_rows(base);
  const OptionalTensor residual = adds_base ? image : std::nullopt;
  const ForwardTensors tensors{input, weight, mask, bias, image, residual};
  const ConvGeometry g = check_forward_into(kOp, base, tensors, stride, padding, dilation, groups);
  const Problem problem{
      .geometry = g,
      .tensors = tensors,
      .active_idx = active_idx,
      .count = count,
      .packed_weight = packed_weight,
      .epilogue = {.activation = activation,
                   .base_activation = activate_base ? activation : Activation::kNone,
                   .fill = activate_base ? Fill::kPassthrough : Fill::kNone},
      .wanted = wanted,
      .expected_density = expected_density,
      .allow_tf32 = allow_tf32};
  const ConvAlgorithm chosen = choose(problem);
  Tensor target = base;
  if (chosen == ConvAlgorithm::kDense) {
    Epilogue epilogue = problem.epilogue;
    epilogue.fill = Fill::kPassthrough;
    torch::stable::copy_(target, forward_dense(kOp, tensors, g, epilogue));
    return;
  }
  run_into(kOp, problem, chosen, *image);
  if (image->const_data_ptr() != base.const_data_ptr()) torch::stable::copy_(target, *image);
}

}  // namespace perfconv::cuda

PERFCONV_CUDA_IMPL(m) {
  m.impl("perforated_conv2d", TORCH_BOX(&perfconv::cuda::perforated_conv2d));
  m.impl("perforated_conv2d_into", TORCH_BOX(&perfconv::cuda::perforated_conv2d_into));
}
