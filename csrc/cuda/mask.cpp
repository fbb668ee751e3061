// Masks on CUDA: compaction and the input pixels that active outputs read.
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "core/conv_arguments.h"
#include "core/registration.h"
#include "cuda/active.h"
#include "cuda/device_call.h"

namespace perfconv::cuda {
namespace {

std::tuple<Tensor, Tensor, Tensor> compact_mask(const Tensor& mask) {
  check_compact_mask(mask);
  DeviceCall call("compact_mask", mask);
  const CompactedMask compacted = compact(call, mask, mask.size(0), true);
  return {compacted.active_idx, compacted.count, *compacted.image_counts};
}

}  // namespace
}  // namespace perfconv::cuda

PERFCONV_CUDA_IMPL(m) { m.impl("compact_mask", TORCH_BOX(&perfconv::cuda::compact_mask)); }
