// perforated_conv2d on CUDA: checks, layout, choice of the kernel, fills.
#include "core/conv_arguments.h"
#include "core/registration.h"
#include "cuda/active.h"
#include "cuda/device_call.h"
#include "cuda/images.h"
#include "cuda/planner.h"

namespace perfconv::cuda {
namespace {

constexpr const char* kOp = "perforated_conv2d";

OptionalTensor contiguous(const OptionalTensor& tensor) {
  return tensor ? OptionalTensor(torch::stable::contiguous(*tensor)) : std::nullopt;
}

Tensor perforated_conv2d(const Tensor& input, const Tensor& weight, const Tensor& mask,
                         const OptionalTensor& bias, const OptionalTensor& base,
                         const OptionalTensor& residual, const OptionalTensor& active_idx,
                         const OptionalTensor& count, const OptionalTensor& /*packed_weight*/,
                         const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                         const std::vector<int64_t>& dilation, int64_t groups,
                         const std::string& fill_name, const std::string& activation_name,
                         bool activate_base, std::optional<double> expected_density,
                         const std::string& algorithm_name) {
  const Fill fill = parse_fill(kOp, fill_name);
  const Activation activation = parse_activation(kOp, activation_name);
  const ConvAlgorithm wanted = parse_algorithm(kOp, algorithm_name);
  const ConvGeometry g = check_forward(kOp, {input, weight, mask, bias, base, residual}, stride,
                                       padding, dilation, groups, fill);
  (void)wanted;
  (void)expected_density;
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
    const ForwardArgs args{
        .geometry = g,
        .storage = storage_type(input.scalar_type()),
        .input = call.read(rows),
        .weight = call.read(taps),
        .epilogue = {.bias = call.read(bias_row),
                     .residual = call.read(residual_rows),
                     .base = call.read(base_rows),
                     .activation = activation,
                     .base_activation = activate_base ? activation : Activation::kNone,
                     .fill = fill},
        .mask = mask_args(call, mask_bytes, g.batch),
        .active = {.idx = call.read<int32_t>(active.active_idx),
                   .count = call.read<int32_t>(active.count),
                   .capacity = g.out_pixels()},
        .output = call.write(output)};
    call.check(launch_forward_direct(call.context(), args));
  }
  return in_layout(output, is_channels_last(input));
}

}  // namespace
}  // namespace perfconv::cuda

PERFCONV_CUDA_IMPL(m) {
  m.impl("perforated_conv2d", TORCH_BOX(&perfconv::cuda::perforated_conv2d));
}
