// perforated_conv2d on CUDA: checks, layout, choice of the kernel, fills.
#include "core/conv_arguments.h"
#include "core/registration.h"
#include "cuda/active.h"
#include "cuda/dense.h"
#include "cuda/device_call.h"
#include "cuda/gather_gemm.h"
#include "cuda/images.h"
#include "cuda/nearest.h"
#include "cuda/planner.h"

namespace perfconv::cuda {
namespace {

constexpr const char* kOp = "perforated_conv2d";

OptionalTensor contiguous(const OptionalTensor& tensor) {
  return tensor ? OptionalTensor(torch::stable::contiguous(*tensor)) : std::nullopt;
}

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

DeviceTraits traits(const ForwardArgs& args) {
  return {.storage = args.storage,
          .allow_tf32 = args.allow_tf32,
          .is_aligned = is_aligned(args.input) && is_aligned(args.weight)};
}

void run_kernel(DeviceCall& call, ForwardArgs& args, ConvAlgorithm algorithm) {
  switch (forward_kernel(args.geometry, traits(args), algorithm)) {
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

Tensor perforated_conv2d(const Tensor& input, const Tensor& weight, const Tensor& mask,
                         const OptionalTensor& bias, const OptionalTensor& base,
                         const OptionalTensor& residual, const OptionalTensor& active_idx,
                         const OptionalTensor& count, const OptionalTensor& /*packed_weight*/,
                         const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                         const std::vector<int64_t>& dilation, int64_t groups,
                         const std::string& fill_name, const std::string& activation_name,
                         bool activate_base, std::optional<double> expected_density,
                         const std::string& algorithm_name, bool allow_tf32) {
  const Fill fill = parse_fill(kOp, fill_name);
  const Activation activation = parse_activation(kOp, activation_name);
  const ConvAlgorithm wanted = parse_algorithm(kOp, algorithm_name);
  const ConvGeometry g = check_forward(kOp, {input, weight, mask, bias, base, residual}, stride,
                                       padding, dilation, groups, fill);
  Epilogue epilogue{.activation = activation,
                    .base_activation = activate_base ? activation : Activation::kNone,
                    .fill = fill};
  const StorageType storage = storage_type(input.scalar_type());
  const ConvAlgorithm chosen =
      choose_algorithm(g, {.storage = storage, .allow_tf32 = allow_tf32}, wanted, expected_density);
  if (chosen == ConvAlgorithm::kDense) {
    const Tensor dense =
        forward_dense(kOp, {input, weight, mask, bias, base, residual}, g, epilogue);
    return in_layout(dense, is_channels_last(input));
  }
  const Tensor rows = to_rows(input);
  const Tensor taps = to_rows(weight);
  const Tensor mask_bytes = torch::stable::contiguous(mask);
  const OptionalTensor bias_row = contiguous(bias);
  const OptionalTensor residual_rows = to_rows(residual);
  const OptionalTensor base_rows = to_rows(base);
  const Tensor output = empty_rows(input, {g.batch, g.out_channels, g.out_height, g.out_width});
  {
    DeviceCall call(kOp, input);
    const CompactedMask active = active_pixels(call, mask_bytes, g.batch, active_idx, count);
    epilogue.bias = call.read(bias_row);
    epilogue.residual = call.read(residual_rows);
    epilogue.base = call.read(base_rows);
    ForwardArgs args{.geometry = g,
                     .storage = storage,
                     .allow_tf32 = allow_tf32,
                     .input = call.read(rows),
                     .weight = call.read(taps),
                     .epilogue = epilogue,
                     .mask = mask_args(call, mask_bytes, g.batch),
                     .active = {.idx = call.read<int32_t>(active.active_idx),
                                .count = call.read<int32_t>(active.count),
                                .capacity = g.out_pixels()},
                     .output = call.write(output)};
    run_kernel(call, args, chosen);
    if (fill == Fill::kNearest) {
      fill_nearest(call, args.mask, storage, g.out_channels, args.output);
    }
  }
  return in_layout(output, is_channels_last(input));
}

}  // namespace
}  // namespace perfconv::cuda

PERFCONV_CUDA_IMPL(m) {
  m.impl("perforated_conv2d", TORCH_BOX(&perfconv::cuda::perforated_conv2d));
}
