// The nearest fill and its gradient on CUDA.
#include "cuda/nearest.h"

#include "core/conv_arguments.h"
#include "core/registration.h"
#include "cuda/active.h"
#include "cuda/images.h"

namespace perfconv::cuda {
namespace {

NearestMap nearest_map(DeviceCall& call, const MaskArgs& mask) {
  const auto bytes = mask.pixels() * static_cast<int64_t>(sizeof(int32_t));
  const NearestMap map{.column_rows = static_cast<int32_t*>(call.scratch(bytes)),
                       .sources = static_cast<int32_t*>(call.scratch(bytes))};
  call.check(launch_nearest_map(call.context(), mask, map));
  return map;
}

Tensor nearest_fill(const Tensor& values, const Tensor& mask) {
  check_nearest("nearest_fill", "values", values, mask);
  const Tensor rows = to_rows(values);
  const Tensor bytes = torch::stable::contiguous(mask);
  const Tensor filled = empty_rows(values, size_vector(values));
  {
    DeviceCall call("nearest_fill", values);
    const MaskArgs args = mask_args(call, bytes, values.size(0));
    const NearestMap map = nearest_map(call, args);
    call.check(launch_nearest_fill(call.context(), storage_type(values.scalar_type()),
                                   call.read(rows), map.sources, args.pixels(), values.size(1),
                                   call.write(filled)));
  }
  return in_layout(filled, is_channels_last(values));
}

Tensor nearest_fill_grad(const Tensor& grad, const Tensor& mask) {
  check_nearest("nearest_fill_grad", "grad", grad, mask);
  const Tensor rows = to_rows(grad);
  const Tensor bytes = torch::stable::contiguous(mask);
  const Tensor result = empty_rows(grad, size_vector(grad));
  {
    DeviceCall call("nearest_fill_grad", grad);
    const MaskArgs args = mask_args(call, bytes, grad.size(0));
    const NearestMap map = nearest_map(call, args);
    call.check(launch_nearest_fill_grad(call.context(), storage_type(grad.scalar_type()),
                                        call.read(rows), args, map, grad.size(1),
                                        call.write(result)));
  }
  return in_layout(result, is_channels_last(grad));
}

}  // namespace

void fill_nearest(DeviceCall& call, const MaskArgs& mask, StorageType storage, int64_t channels,
                  void* image) {
  const NearestMap map = nearest_map(call, mask);
  call.check(launch_nearest_fill(call.context(), storage, image, map.sources, mask.pixels(),
                                 channels, image));
}

}  // namespace perfconv::cuda

PERFCONV_CUDA_IMPL(m) {
  m.impl("nearest_fill", TORCH_BOX(&perfconv::cuda::nearest_fill));
  m.impl("nearest_fill_grad", TORCH_BOX(&perfconv::cuda::nearest_fill_grad));
}
