// Masks on CUDA: compaction and the input pixels that active outputs read.
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "core/conv_arguments.h"
#include "core/registration.h"
#include "cuda/active.h"
#include "cuda/device_call.h"
#include "cuda/operators.h"

namespace perfconv::cuda {

std::tuple<Tensor, Tensor, Tensor> compact_mask(const Tensor& mask) {
  check_compact_mask(mask);
  DeviceCall call("compact_mask", mask);
  const CompactedMask compacted = compact(call, mask, mask.size(0), true);
  return {compacted.active_idx, compacted.count, *compacted.image_counts};
}

Tensor expand_mask(const Tensor& mask, const std::vector<int64_t>& kernel_size,
                   const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                   const std::vector<int64_t>& dilation, const std::vector<int64_t>& input_size) {
  const ConvGeometry g =
      check_expand_mask(mask, kernel_size, stride, padding, dilation, input_size);
  const Tensor bytes = torch::stable::contiguous(mask);
  const Tensor expanded = torch::stable::new_empty(mask, {g.batch, 1, g.in_height, g.in_width});
  DeviceCall call("expand_mask", mask);
  call.check(launch_expand_mask(call.context(), mask_args(call, bytes, g.batch), g,
                                call.write<uint8_t>(expanded)));
  return expanded;
}

}  // namespace perfconv::cuda

PERFCONV_CUDA_IMPL(m) {
  m.impl("compact_mask", TORCH_BOX(&perfconv::cuda::compact_mask));
  m.impl("expand_mask", TORCH_BOX(&perfconv::cuda::expand_mask));
}
