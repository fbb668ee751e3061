// The gate on CUDA: logits, decision and compaction.
#include <tuple>

#include "core/conv_arguments.h"
#include "core/registration.h"
#include "cuda/device_call.h"
#include "cuda/images.h"
#include "cuda/operators.h"

namespace perfconv::cuda {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> gate_mask(const Tensor& input,
                                                             const Tensor& weight,
                                                             const OptionalTensor& bias,
                                                             bool wants_soft) {
  check_gate_mask(input, weight, bias);
  const int64_t batch = input.size(0);
  const int64_t height = input.size(2);
  const int64_t width = input.size(3);
  const Tensor rows = to_rows(input);
  const Tensor weight_rows = torch::stable::contiguous(weight);
  const OptionalTensor bias_row =
      bias ? OptionalTensor(torch::stable::contiguous(*bias)) : std::nullopt;
  const auto empty_int = [&](int64_t length) {
    return torch::stable::new_empty(input, {length}, ScalarType::Int);
  };
  const Tensor mask = torch::stable::new_empty(input, {batch, 1, height, width}, ScalarType::Bool);
  const Tensor active_idx = empty_int(batch * height * width);
  const Tensor count = empty_int(1);
  const Tensor image_counts = empty_int(batch);
  const Tensor soft = wants_soft ? torch::stable::new_empty(input, {batch, 1, height, width})
                                 : torch::stable::new_empty(input, {0});
  DeviceCall call("gate_mask", input);
  const GateArgs args{.storage = storage_type(input.scalar_type()),
                      .input = call.read(rows),
                      .weight = call.read(weight_rows),
                      .bias = call.read(bias_row),
                      .images = batch,
                      .height = height,
                      .width = width,
                      .channels = input.size(1),
                      .mask = call.write<uint8_t>(mask),
                      .soft = wants_soft ? call.write(soft) : nullptr};
  call.check(launch_gate_mask(call.context(), args,
                              call.scratch(compact_mask_workspace(args.pixels())),
                              call.write<int32_t>(active_idx), call.write<int32_t>(count),
                              call.write<int32_t>(image_counts)));
  return {soft, mask, active_idx, count, image_counts};
}

}  // namespace perfconv::cuda

PERFCONV_CUDA_IMPL(m) { m.impl("gate_mask", TORCH_BOX(&perfconv::cuda::gate_mask)); }
