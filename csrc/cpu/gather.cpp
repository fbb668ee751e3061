// Rows of active pixels: gather to (capacity, C) and scatter back. The row count is static
// (capacity = N * H * W), so nothing data-dependent reaches a shape; rows past the count are zero.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "core/conv_arguments.h"
#include "cpu/images.h"

namespace perfconv::cpu {
namespace {

// The count of a list, whose entries must lie in [0, capacity).
int64_t count_of(const char* op, const Tensor& active_idx, const Tensor& count, int64_t capacity) {
  const int64_t active = *data<int32_t>(torch::stable::contiguous(count));
  if (active < 0 || active > capacity) {
    fail(op, "count must be in [0, ", capacity, "], got ", active,
         ". Make the list with compact_mask.");
  }
  const int32_t* positions = data<int32_t>(active_idx);
  for (int64_t i = 0; i < active; ++i) {
    if (positions[i] < 0 || positions[i] >= capacity) {
      fail(op, "active_idx must hold positions in [0, ", capacity, "), got ", positions[i], " at ",
           i, ". Make the list with compact_mask.");
    }
  }
  return active;
}

Tensor gather_pixels(const Tensor& input, const Tensor& active_idx, const Tensor& count) {
  check_gather_pixels(input, active_idx, count);
  const int64_t capacity = active_idx.numel();
  const Tensor list = torch::stable::contiguous(active_idx);
  const int64_t active = count_of("gather_pixels", list, count, capacity);
  const Tensor image = to_channels_last(input);
  const int64_t row_bytes = input.size(1) * input.element_size();
  const Tensor rows = torch::stable::empty({capacity, input.size(1)}, input.scalar_type());
  const char* from = static_cast<const char*>(image.const_data_ptr());
  char* to = static_cast<char*>(rows.mutable_data_ptr());
  const int32_t* positions = data<int32_t>(list);
  parallel_rows(capacity, row_bytes / 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < std::min(end, active); ++i) {
      copy_bytes(to + i * row_bytes, from + positions[i] * row_bytes, row_bytes);
    }
    const int64_t rest = std::max(begin, active);
    if (rest < end) {
      zero_bytes(to + rest * row_bytes, (end - rest) * row_bytes);
    }
  });
  return rows;
}

Tensor scatter_pixels(const Tensor& rows, const Tensor& mask, const Tensor& active_idx,
                      const Tensor& count, const OptionalTensor& base) {
  const std::vector<int64_t> shape = check_scatter_pixels(rows, mask, active_idx, count, base);
  const int64_t capacity = mask.numel();
  const Tensor list = torch::stable::contiguous(active_idx);
  const int64_t active = count_of("scatter_pixels", list, count, capacity);
  const Tensor source = torch::stable::contiguous(rows);
  const Tensor result = empty_image(rows, shape, true);
  const int64_t row_bytes = rows.size(1) * rows.element_size();
  char* to = static_cast<char*>(result.mutable_data_ptr());
  const int64_t total = capacity * row_bytes;
  if (base) {
    copy_bytes(to, to_channels_last(*base).const_data_ptr(), total);
  } else {
    zero_bytes(to, total);
  }
  const char* from = static_cast<const char*>(source.const_data_ptr());
  for (int64_t i = 0; i < active; ++i) {
    copy_bytes(to + data<int32_t>(list)[i] * row_bytes, from + i * row_bytes, row_bytes);
  }
  return result;
}

}  // namespace
}  // namespace perfconv::cpu

STABLE_TORCH_LIBRARY_IMPL(perfconv, CPU, m) {
  m.impl("gather_pixels", TORCH_BOX(&perfconv::cpu::gather_pixels));
  m.impl("scatter_pixels", TORCH_BOX(&perfconv::cpu::scatter_pixels));
}
