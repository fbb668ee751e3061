// pack_weight on CUDA: the kernels read channels_last weights as they lie, so there is no pack.
#include <torch/csrc/stable/ops.h>

#include "core/checks.h"
#include "core/registration.h"

namespace perfconv::cuda {
namespace {

Tensor pack_weight(const Tensor& weight, int64_t groups) {
  constexpr const char* kOp = "pack_weight";
  check_floating(kOp, "weight", weight);
  check_rank(kOp, "weight", "(C_out, C_in / groups, K_h, K_w)", weight, 4);
  check_weight(kOp, size_vector(weight), groups);
  return torch::stable::new_empty(weight, {0});
}

}  // namespace
}  // namespace perfconv::cuda

PERFCONV_CUDA_IMPL(m) { m.impl("pack_weight", TORCH_BOX(&perfconv::cuda::pack_weight)); }
