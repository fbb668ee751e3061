// The active pixels of a mask, as the kernels take them.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "core/checks.h"
#include "cuda/device_call.h"

namespace perfconv::cuda {

struct CompactedMask {
  Tensor active_idx;            // (capacity,), int32
  Tensor count;                 // (1,), int32
  OptionalTensor image_counts;  // (N,), int32
};

// mask (N or 1, 1, H, W), contiguous, already checked; batch is that of the output. The tensor must
// outlive the call.
inline MaskArgs mask_args(DeviceCall& call, const Tensor& mask, int64_t batch) {
  return {.mask = call.read<uint8_t>(mask),
          .images = batch,
          .height = mask.size(2),
          .width = mask.size(3),
          .is_shared = mask.size(0) != batch};
}

inline CompactedMask compact(DeviceCall& call, const Tensor& mask, int64_t batch,
                             bool wants_image_counts = false) {
  const Tensor bytes = torch::stable::contiguous(mask);
  const MaskArgs args = mask_args(call, bytes, batch);
  CompactedMask result{
      .active_idx = torch::stable::new_empty(mask, {args.pixels()}, ScalarType::Int),
      .count = torch::stable::new_empty(mask, {1}, ScalarType::Int),
      .image_counts = wants_image_counts
                          ? OptionalTensor(torch::stable::new_empty(mask, {batch}, ScalarType::Int))
                          : std::nullopt};
  call.check(launch_compact_mask(
      call.context(), args, call.scratch(compact_mask_workspace(args.pixels())),
      call.write<int32_t>(result.active_idx), call.write<int32_t>(result.count),
      wants_image_counts ? call.write<int32_t>(*result.image_counts) : nullptr));
  return result;
}

// The list that the caller has, where it is one of this batch, else a new one. The list is trusted:
// it comes from compact_mask of the same mask.
inline CompactedMask active_pixels(DeviceCall& call, const Tensor& mask, int64_t batch,
                                   const OptionalTensor& active_idx, const OptionalTensor& count) {
  if (active_idx && count && active_idx->numel() == batch * mask.size(2) * mask.size(3)) {
    return {.active_idx = torch::stable::contiguous(*active_idx),
            .count = torch::stable::contiguous(*count),
            .image_counts = std::nullopt};
  }
  return compact(call, mask, batch);
}

// The list as kernels take it. The tensors must outlive the call.
inline ActiveArgs active_args(DeviceCall& call, const CompactedMask& active, int64_t capacity) {
  return {.idx = call.read<int32_t>(active.active_idx),
          .count = call.read<int32_t>(active.count),
          .capacity = capacity};
}

}  // namespace perfconv::cuda
