// Layout rules and allocation of the CUDA operators: kernels see rows of channels, (N, H, W, C).
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "core/checks.h"

namespace perfconv::cuda {

using torch::headeronly::MemoryFormat;

// The rule of the fake kernels: channels_last if it is not contiguous as (N, C, H, W) and its
// channels are neighbours in memory.
inline bool is_channels_last(const Tensor& image) {
  return !image.is_contiguous() && image.size(1) > 1 && image.stride(1) == 1;
}

// The image (or weight) as rows of channels; itself if it is that already.
inline Tensor to_rows(const Tensor& image) {
  return torch::stable::contiguous(image, MemoryFormat::ChannelsLast);
}

inline OptionalTensor to_rows(const OptionalTensor& image) {
  return image ? OptionalTensor(to_rows(*image)) : std::nullopt;
}

// Uninitialised, as rows of channels, on the device and in the dtype of another tensor.
inline Tensor empty_rows(const Tensor& like, const std::vector<int64_t>& shape) {
  return torch::stable::empty(shape, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              MemoryFormat::ChannelsLast);
}

// Rows of channels in the layout asked for: itself, or a contiguous copy.
inline Tensor in_layout(const Tensor& image, bool channels_last) {
  return channels_last ? image : torch::stable::contiguous(image);
}

}  // namespace perfconv::cuda
