// Rows of active pixels: gather to (capacity, C) and scatter back. The row count is static
// (capacity = N * H * W), so nothing data-dependent reaches a shape; rows past the count are zero.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "cpu/images.h"

namespace perfconv::cpu {
namespace {

// The list a caller hands over: int32 (capacity,), with the first *count entries in range.
int64_t check_list(const char* op, const Tensor& active_idx, const Tensor& count,
                   int64_t capacity) {
  if (active_idx.scalar_type() != ScalarType::Int || count.scalar_type() != ScalarType::Int) {
    fail(op, "active_idx and count must be int32, got ", toString(active_idx.scalar_type()),
         " and ", toString(count.scalar_type()), ". Make them with compact_mask.");
  }
  check_shape(op, "active_idx", "(N * H * W,)", active_idx, {capacity});
  check_shape(op, "count", "(1,)", count, {1});
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
  constexpr const char* kOp = "gather_pixels";
  check_floating(kOp, "input", input);
  check_rank(kOp, "input", "(N, C, H, W)", input, 4);
  const int64_t capacity = input.size(0) * input.size(2) * input.size(3);
  const Tensor list = torch::stable::contiguous(active_idx);
  const int64_t active = check_list(kOp, list, count, capacity);
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
  constexpr const char* kOp = "scatter_pixels";
  check_floating(kOp, "rows", rows);
  check_rank(kOp, "rows", "(capacity, C)", rows, 2);
  check_mask_image(kOp, mask, "(N, 1, H, W)");
  const int64_t capacity = mask.numel();
  const int64_t channels = rows.size(1);
  check_shape(kOp, "rows", "(N * H * W, C)", rows, {capacity, channels});
  const std::vector<int64_t> shape{mask.size(0), channels, mask.size(2), mask.size(3)};
  if (base) {
    check_like(kOp, "base", *base, "rows", rows);
    check_shape(kOp, "base", "(N, C, H, W)", *base, shape);
  }
  const Tensor list = torch::stable::contiguous(active_idx);
  const int64_t active = check_list(kOp, list, count, capacity);
  const Tensor source = torch::stable::contiguous(rows);
  const Tensor result = empty_image(rows, shape, true);
  const int64_t row_bytes = channels * rows.element_size();
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
