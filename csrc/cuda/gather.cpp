// Rows of active pixels on CUDA: gather to (capacity, C) and scatter back.
#include "core/conv_arguments.h"
#include "core/registration.h"
#include "cuda/device_call.h"
#include "cuda/images.h"

namespace perfconv::cuda {
namespace {

ActiveArgs active_args(DeviceCall& call, const Tensor& active_idx, const Tensor& count) {
  return {.idx = call.read<int32_t>(active_idx),
          .count = call.read<int32_t>(count),
          .capacity = active_idx.numel()};
}

Tensor gather_pixels(const Tensor& input, const Tensor& active_idx, const Tensor& count) {
  check_gather_pixels(input, active_idx, count);
  const Tensor image = to_rows(input);
  const Tensor list = torch::stable::contiguous(active_idx);
  const Tensor rows = torch::stable::new_empty(input, {active_idx.numel(), input.size(1)});
  DeviceCall call("gather_pixels", input);
  call.check(launch_gather_pixels(call.context(), storage_type(input.scalar_type()),
                                  call.read(image), input.size(1), active_args(call, list, count),
                                  call.write(rows)));
  return rows;
}

Tensor scatter_pixels(const Tensor& rows, const Tensor& mask, const Tensor& active_idx,
                      const Tensor& count, const OptionalTensor& base) {
  const std::vector<int64_t> shape = check_scatter_pixels(rows, mask, active_idx, count, base);
  const Tensor source = torch::stable::contiguous(rows);
  const Tensor list = torch::stable::contiguous(active_idx);
  const OptionalTensor base_rows = to_rows(base);
  const Tensor image = empty_rows(rows, shape);
  DeviceCall call("scatter_pixels", rows);
  const ActiveArgs active = active_args(call, list, count);
  auto* row_of = static_cast<int32_t*>(call.scratch(active.capacity * sizeof(int32_t)));
  call.check(launch_invert_active(call.context(), active, row_of));
  call.check(launch_scatter_pixels(call.context(), storage_type(rows.scalar_type()),
                                   call.read(source), rows.size(1), row_of, active.capacity,
                                   call.read(base_rows), call.write(image)));
  return image;
}

}  // namespace
}  // namespace perfconv::cuda

PERFCONV_CUDA_IMPL(m) {
  m.impl("gather_pixels", TORCH_BOX(&perfconv::cuda::gather_pixels));
  m.impl("scatter_pixels", TORCH_BOX(&perfconv::cuda::scatter_pixels));
}
