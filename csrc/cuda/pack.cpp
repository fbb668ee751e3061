// pack_weight on CUDA: most kernels read channels_last weights as they lie, and there is no pack.
// For those of capability 9.0 a pack is made in the order of their bulk copies.
#include "cuda/pack.h"

#include "core/conv_arguments.h"
#include "core/registration.h"
#include "cuda/device_traits.h"
#include "cuda/images.h"
#include "cuda/kernels/launch_sm90a.h"

namespace perfconv::cuda {
namespace {

// PERFCONV_CUDA_PACK=0: no packs, to compare with.
bool are_packs_wanted() {
  static const bool are_wanted = environment_flag("PERFCONV_CUDA_PACK");
  return are_wanted;
}

constexpr int64_t kMostElements = int64_t{1} << 31;  // kernels count them in 32 bits

bool is_aligned(const Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
}

Tensor pack_weight(const Tensor& weight, int64_t groups) {
  constexpr const char* kOp = "pack_weight";
  check_floating(kOp, "weight", weight);
  check_rank(kOp, "weight", "(C_out, C_in / groups, K_h, K_w)", weight, 4);
  check_weight(kOp, size_vector(weight), groups);
  PackArgs args{.matrices = groups,
                .columns = weight.size(0) / groups,
                .taps = weight.size(2) * weight.size(3),
                .depth = weight.size(1)};
  DeviceTraits device{.storage = storage_type(weight.scalar_type()), .compute_capability = 90};
  const Tensor none = torch::stable::new_empty(weight, {0});
  const bool may_be_read = wgmma_refusal(device, args.depth).empty() && args.taps <= kMostTaps &&
                           packed_elements(args) < kMostElements && are_packs_wanted();
  if (!may_be_read) return none;
  DeviceCall call(kOp, weight);
  device.compute_capability = call.context().compute_capability;
  if (!wgmma_refusal(device, args.depth).empty()) return none;
  const Tensor rows = to_rows(weight);
  if (!is_aligned(rows)) return none;
  const Tensor packed = torch::stable::new_empty(weight, {packed_elements(args)});
  args.weight = call.read(rows);
  args.packed = call.write(packed);
  call.check(launch_pack_weight(call.context(), args));
  return packed;
}

}  // namespace

PackedWeight usable_pack(DeviceCall& call, const OptionalTensor& packed, const Tensor& weight,
                         const ConvGeometry& g, int64_t branches) {
  if (!packed || packed->numel() == 0 || !packed->is_contiguous()) return {};
  const PackArgs one{.matrices = g.groups,
                     .columns = g.group_out_channels(),
                     .taps = g.taps(),
                     .depth = g.group_in_channels()};
  const int64_t elements = packed_elements(one);
  if (packed->numel() != branches * elements || packed->numel() >= kMostElements) return {};
  const bool is_like = packed->scalar_type() == weight.scalar_type() &&
                       packed->is_cuda() == weight.is_cuda() &&
                       packed->get_device() == weight.get_device();
  if (!is_like || !is_aligned(*packed)) return {};
  return {.blocks = call.read(*packed),
          .matrices = static_cast<int>(branches * g.groups),
          .pitch = static_cast<int>(branches == 1 ? packed_pitch(one) : elements)};
}

}  // namespace perfconv::cuda

PERFCONV_CUDA_IMPL(m) { m.impl("pack_weight", TORCH_BOX(&perfconv::cuda::pack_weight)); }
