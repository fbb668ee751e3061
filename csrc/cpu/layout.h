// Conversion between (N, C, H, W)-contiguous and channels_last memory, in parallel and in blocks:
// several times faster than a strided copy, and all that an NCHW caller pays.
#pragma once

#include <torch/csrc/stable/tensor.h>

namespace perfconv::cpu {

// The image in channels_last memory; itself if it is already.
torch::stable::Tensor to_channels_last(const torch::stable::Tensor& image);

// A tensor in contiguous memory, as it is if it lies so: torch would be asked by name, which takes
// microseconds (KERNELS.md K-028).
torch::stable::Tensor in_order(const torch::stable::Tensor& tensor);

// An image (or weight) in contiguous memory; itself if it is already.
torch::stable::Tensor to_contiguous(const torch::stable::Tensor& image);

// A channels_last image in the layout asked for: itself, or a contiguous copy.
torch::stable::Tensor in_layout(const torch::stable::Tensor& image, bool channels_last);

}  // namespace perfconv::cpu
