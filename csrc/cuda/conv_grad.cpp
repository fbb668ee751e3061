// Gradients of perforated_conv2d on CUDA: dgrad, wgrad, and the sum over active pixels that is the
// gradient of the bias.
#include <array>
#include <tuple>

#include "core/conv_arguments.h"
#include "core/dense_backward.h"
#include "core/registration.h"
#include "cuda/active.h"
#include "cuda/device_call.h"
#include "cuda/device_traits.h"
#include "cuda/gather_gemm.h"
#include "cuda/images.h"
#include "cuda/kernels/launch_sm90a.h"
#include "cuda/planner_grad.h"

namespace perfconv::cuda {
namespace {

// where(mask, grad, 0): the dense gradients read every pixel.
Tensor masked(const Tensor& grad_output, const Tensor& mask) {
  const Tensor zero = torch::stable::new_zeros(grad_output, {1});
  std::array<StableIValue, 3> stack{torch::stable::detail::from(mask),
                                    torch::stable::detail::from(grad_output),
                                    torch::stable::detail::from(zero)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::where", "self", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

GradKernel choose_kernel(const LaunchContext& context, Gradient which, const GradArgs& args,
                         ConvAlgorithm wanted) {
  const DeviceTraits device = device_traits(context, args, args.grad_output, args.operand);
  return grad_kernel(which, args.geometry, device,
                     choose_algorithm(args.geometry, device, wanted, std::nullopt));
}

// The input pixels that active outputs read, neighbours with similar tap patterns.
SortedPixels sort_pixels(DeviceCall& call, const GradArgs& args) {
  const int64_t pixels = args.geometry.in_pixels();
  const int bits = tap_key_bits(args.geometry);
  const auto words = [&](int64_t count) {
    return call.scratch(count * static_cast<int64_t>(sizeof(int32_t)));
  };
  auto* patterns = static_cast<uint32_t*>(words(pixels));
  auto* keys = static_cast<uint32_t*>(words(pixels));
  auto* sorted = static_cast<int32_t*>(words(pixels));
  auto* starts = static_cast<int32_t*>(words((int64_t{1} << bits) + 1));
  call.check(launch_tap_patterns(call.context(), args.geometry, args.mask, patterns, keys));
  const SortArgs sort{.keys = keys, .bits = bits, .capacity = pixels};
  void* workspace = call.scratch(counting_sort_workspace(sort));
  call.check(launch_counting_sort(call.context(), sort, workspace, sorted, starts));
  return {.sorted = sorted, .patterns = patterns, .count = starts + (1 << bits) - 1};
}

void run_dgrad(DeviceCall& call, GradArgs& args, ConvAlgorithm wanted) {
  if (args.geometry.in_pixels() == 0) return;
  switch (choose_kernel(call.context(), Gradient::kInput, args, wanted)) {
    case GradKernel::kWgmma: {
      const SortedPixels pixels = sort_pixels(call, args);
      args.workspace = call.scratch(dgrad_wgmma_workspace(call.context(), args));
      return call.check(launch_dgrad_wgmma(call.context(), args, pixels));
    }
    case GradKernel::kTensorCore:
    case GradKernel::kSimt: {
      const SortedPixels pixels = sort_pixels(call, args);
      args.workspace = call.scratch(dgrad_implicit_workspace(call.context(), args));
      return call.check(launch_dgrad_implicit(call.context(), args, pixels));
    }
    case GradKernel::kDepthwise:
      return call.check(launch_dgrad_depthwise(call.context(), args));
    case GradKernel::kGatherGemm:
      return dgrad_gather_gemm(call, args);
    case GradKernel::kDirect:
      return call.check(launch_dgrad_direct(call.context(), args));
  }
}

void run_wgrad(DeviceCall& call, GradArgs& args, ConvAlgorithm wanted) {
  switch (choose_kernel(call.context(), Gradient::kWeight, args, wanted)) {
    case GradKernel::kWgmma:
      args.workspace = call.scratch(wgrad_wgmma_workspace(args));
      return call.check(launch_wgrad_wgmma(call.context(), args));
    case GradKernel::kTensorCore:
    case GradKernel::kSimt:
      args.workspace = call.scratch(wgrad_implicit_workspace(args));
      return call.check(launch_wgrad_implicit(call.context(), args));
    case GradKernel::kDepthwise:
      args.workspace = call.scratch(wgrad_depthwise_workspace(args));
      return call.check(launch_wgrad_depthwise(call.context(), args));
    case GradKernel::kGatherGemm:
      return wgrad_gather_gemm(call, args);
    case GradKernel::kDirect:
      return call.check(launch_wgrad_direct(call.context(), args));
  }
}

Tensor dgrad(const Tensor& grad_output, const Tensor& weight, const Tensor& mask,
             const OptionalTensor& active_idx, const OptionalTensor& count,
             const std::vector<int64_t>& input_size, bool channels_last,
             const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
             const std::vector<int64_t>& dilation, int64_t groups,
             const std::string& algorithm_name, bool allow_tf32) {
  constexpr const char* kOp = "perforated_conv2d_dgrad";
  const ConvAlgorithm wanted = parse_algorithm(kOp, algorithm_name);
  const ConvGeometry g =
      check_dgrad(kOp, grad_output, weight, mask, input_size, stride, padding, dilation, groups);
  const std::vector<int64_t> input_shape{g.batch, g.in_channels, g.in_height, g.in_width};
  const Tensor result = empty_rows(grad_output, input_shape);
  if (wanted == ConvAlgorithm::kDense) {
    const Tensor dense =
        dense_backward(to_rows(masked(grad_output, mask)), result, to_rows(weight), g, true);
    return in_layout(to_rows(dense), channels_last);
  }
  const Tensor grad_rows = to_rows(grad_output);
  const Tensor taps = to_rows(weight);
  const Tensor mask_bytes = torch::stable::contiguous(mask);
  {
    DeviceCall call(kOp, grad_output);
    GradArgs args{.geometry = g,
                  .storage = storage_type(weight.scalar_type()),
                  .allow_tf32 = allow_tf32,
                  .grad_output = call.read(grad_rows),
                  .operand = call.read(taps),
                  .mask = mask_args(call, mask_bytes, g.batch),
                  .active = {},
                  .result = call.write(result)};
    if (wanted == ConvAlgorithm::kGatherGemm) {  // the others read the mask
      const CompactedMask active = active_pixels(call, mask_bytes, g.batch, active_idx, count);
      args.active = active_args(call, active, g.out_pixels());
    }
    run_dgrad(call, args, wanted);
  }
  return in_layout(result, channels_last);
}

Tensor wgrad(const Tensor& grad_output, const Tensor& input, const Tensor& mask,
             const OptionalTensor& active_idx, const OptionalTensor& count,
             const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
             const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
             int64_t groups, const std::string& algorithm_name, bool allow_tf32) {
  constexpr const char* kOp = "perforated_conv2d_wgrad";
  const ConvAlgorithm wanted = parse_algorithm(kOp, algorithm_name);
  const ConvGeometry g =
      check_wgrad(kOp, grad_output, input, mask, kernel_size, stride, padding, dilation, groups);
  const std::vector<int64_t> weight_shape{g.out_channels, g.group_in_channels(), g.kernel_height,
                                          g.kernel_width};
  const Tensor result = torch::stable::new_empty(input, weight_shape);
  if (wanted == ConvAlgorithm::kDense) {
    const Tensor dense =
        dense_backward(to_rows(masked(grad_output, mask)), to_rows(input), result, g, false);
    return torch::stable::contiguous(dense);
  }
  const Tensor grad_rows = to_rows(grad_output);
  const Tensor input_rows = to_rows(input);
  const Tensor mask_bytes = torch::stable::contiguous(mask);
  {
    DeviceCall call(kOp, grad_output);
    const CompactedMask active = active_pixels(call, mask_bytes, g.batch, active_idx, count);
    GradArgs args{.geometry = g,
                  .storage = storage_type(input.scalar_type()),
                  .allow_tf32 = allow_tf32,
                  .grad_output = call.read(grad_rows),
                  .operand = call.read(input_rows),
                  .mask = mask_args(call, mask_bytes, g.batch),
                  .active = active_args(call, active, g.out_pixels()),
                  .result = call.write(result)};
    run_wgrad(call, args, wanted);
  }
  return result;
}

Tensor active_sum(const Tensor& values, const Tensor& mask) {
  constexpr const char* kOp = "active_sum";
  check_floating(kOp, "values", values);
  check_rank(kOp, "values", "(N, C, H, W)", values, 4);
  check_mask(kOp, mask, values);
  check_mask_shape(kOp, mask, values.size(0), values.size(2), values.size(3));
  const int64_t channels = values.size(1);
  const int64_t pixels = values.size(0) * values.size(2) * values.size(3);
  const StorageType storage = storage_type(values.scalar_type());
  const Tensor rows = to_rows(values);
  const Tensor mask_bytes = torch::stable::contiguous(mask);
  const Tensor result = torch::stable::new_empty(values, {channels});
  {
    DeviceCall call(kOp, values);
    const CompactedMask active = compact(call, mask_bytes, values.size(0));
    call.check(launch_active_sum(
        call.context(), storage, call.read(rows), channels, active_args(call, active, pixels),
        call.scratch(active_sum_workspace(storage, channels, pixels)), call.write(result)));
  }
  return result;
}

// The three in turn, with one list of active pixels.
std::tuple<Tensor, Tensor, Tensor> backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Tensor& mask,
    const OptionalTensor& active_idx, const OptionalTensor& count,
    const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
    const std::vector<int64_t>& dilation, int64_t groups, bool wants_bias,
    const std::string& algorithm_name, bool allow_tf32) {
  constexpr const char* kOp = "perforated_conv2d_backward";
  const ConvGeometry g =
      check_backward(kOp, grad_output, input, weight, mask, stride, padding, dilation, groups);
  const Tensor mask_bytes = torch::stable::contiguous(mask);
  const CompactedMask active = [&] {
    DeviceCall call(kOp, grad_output);
    return active_pixels(call, mask_bytes, g.batch, active_idx, count);
  }();
  const Tensor grad_rows = to_rows(grad_output);
  const Tensor grad_input = dgrad(grad_rows, weight, mask_bytes, active.active_idx, active.count,
                                  {g.in_height, g.in_width}, is_channels_last(input), stride,
                                  padding, dilation, groups, algorithm_name, allow_tf32);
  const Tensor grad_weight = wgrad(grad_rows, input, mask_bytes, active.active_idx, active.count,
                                   {g.kernel_height, g.kernel_width}, stride, padding, dilation,
                                   groups, algorithm_name, allow_tf32);
  const Tensor grad_bias =
      wants_bias ? active_sum(grad_rows, mask_bytes) : torch::stable::new_empty(grad_output, {0});
  return {grad_input, is_channels_last(weight) ? to_rows(grad_weight) : grad_weight, grad_bias};
}

}  // namespace
}  // namespace perfconv::cuda

PERFCONV_CUDA_IMPL(m) {
  m.impl("perforated_conv2d_dgrad", TORCH_BOX(&perfconv::cuda::dgrad));
  m.impl("perforated_conv2d_wgrad", TORCH_BOX(&perfconv::cuda::wgrad));
  m.impl("perforated_conv2d_backward", TORCH_BOX(&perfconv::cuda::backward));
  m.impl("active_sum", TORCH_BOX(&perfconv::cuda::active_sum));
}
