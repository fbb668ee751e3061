// Masks: compaction to active-pixel lists and the input pixels that active outputs read.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <tuple>
#include <utility>

#include "core/conv_arguments.h"
#include "cpu/active.h"
#include "cpu/images.h"

namespace perfconv::cpu {

int64_t compact_bytes(const uint8_t* mask, int64_t length, int32_t offset, int32_t* to) {
  int64_t count = 0;
  int64_t i = 0;
  for (; i + 8 <= length; i += 8) {
    uint64_t word;
    std::memcpy(&word, mask + i, sizeof(word));
    if (word == 0) continue;
    for (int64_t j = 0; j < 8; ++j) {  // write always, advance if active: no branch to mispredict
      to[count] = offset + static_cast<int32_t>(i + j);
      count += mask[i + j] != 0;
    }
  }
  for (; i < length; ++i) {
    if (mask[i] != 0) to[count++] = offset + static_cast<int32_t>(i);
  }
  return count;
}

int64_t ActiveList::lower_bound(int64_t position) const {
  return std::lower_bound(positions.get(), positions.get() + count, position) - positions.get();
}

ActiveList compact(const Tensor& mask, int64_t batch) {
  const Tensor bytes = torch::stable::contiguous(mask);
  const int64_t pixels = mask.size(2) * mask.size(3);
  const uint8_t* from = data<uint8_t>(bytes);
  ActiveList list;
  // The branch-free loop may write one entry past the last active one: 8 spare entries.
  list.positions.reset(new int32_t[static_cast<size_t>(batch * pixels + 8)]);
  if (mask.size(0) == batch) {
    list.count = compact_bytes(from, batch * pixels, 0, list.positions.get());
    return list;
  }
  for (int64_t n = 0; n < batch; ++n) {
    list.count += compact_bytes(from, pixels, static_cast<int32_t>(n * pixels),
                                list.positions.get() + list.count);
  }
  return list;
}

std::tuple<Tensor, Tensor, Tensor> list_tensors(const ActiveList& list, int64_t batch,
                                                int64_t capacity) {
  const Tensor active_idx = torch::stable::empty({capacity}, ScalarType::Int);
  const Tensor count = torch::stable::empty({1}, ScalarType::Int);
  const Tensor image_counts = torch::stable::empty({batch}, ScalarType::Int);
  int32_t* to = mutable_data<int32_t>(active_idx);
  std::copy_n(list.positions.get(), list.count, to);
  std::fill(to + list.count, to + capacity, -1);
  *mutable_data<int32_t>(count) = static_cast<int32_t>(list.count);
  int64_t begin = 0;
  for (int64_t n = 0; n < batch; ++n) {
    const int64_t end = list.lower_bound((n + 1) * (capacity / batch));
    mutable_data<int32_t>(image_counts)[n] = static_cast<int32_t>(end - begin);
    begin = end;
  }
  return {active_idx, count, image_counts};
}

namespace {

std::tuple<Tensor, Tensor, Tensor> compact_mask(const Tensor& mask) {
  check_compact_mask(mask);
  return list_tensors(compact(mask, mask.size(0)), mask.size(0), mask.numel());
}

// The taps [first, second) whose position start + tap * dilation lies in [0, size).
std::pair<int64_t, int64_t> taps_inside(int64_t start, int64_t dilation, int64_t taps,
                                        int64_t size) {
  const int64_t begin = start < 0 ? (-start + dilation - 1) / dilation : 0;
  const int64_t end = start < size ? (size - start + dilation - 1) / dilation : 0;
  return {begin, std::min(end, taps)};
}

Tensor expand_mask(const Tensor& mask, const std::vector<int64_t>& kernel_size,
                   const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                   const std::vector<int64_t>& dilation, const std::vector<int64_t>& input_size) {
  const ConvGeometry g =
      check_expand_mask(mask, kernel_size, stride, padding, dilation, input_size);
  const ActiveList active = compact(mask, g.batch);
  const Tensor expanded = torch::stable::new_zeros(mask, {g.batch, 1, g.in_height, g.in_width});
  if (expanded.numel() == 0) return expanded;
  uint8_t* to = mutable_data<uint8_t>(expanded);
  for (int64_t i = 0; i < active.count; ++i) {
    const int64_t flat = active.positions[i];
    const int64_t x = flat % g.out_width * g.stride_w - g.pad_left;
    const int64_t row = flat / g.out_width;
    const int64_t y = row % g.out_height * g.stride_h - g.pad_top;
    uint8_t* image = to + row / g.out_height * g.in_height * g.in_width;
    const auto [kh_begin, kh_end] = taps_inside(y, g.dilation_h, g.kernel_height, g.in_height);
    const auto [kw_begin, kw_end] = taps_inside(x, g.dilation_w, g.kernel_width, g.in_width);
    for (int64_t kh = kh_begin; kh < kh_end; ++kh) {
      uint8_t* line = image + (y + kh * g.dilation_h) * g.in_width + x;
      for (int64_t kw = kw_begin; kw < kw_end; ++kw) line[kw * g.dilation_w] = 1;
    }
  }
  return expanded;
}

}  // namespace
}  // namespace perfconv::cpu

STABLE_TORCH_LIBRARY_IMPL(perfconv, CPU, m) {
  m.impl("compact_mask", TORCH_BOX(&perfconv::cpu::compact_mask));
  m.impl("expand_mask", TORCH_BOX(&perfconv::cpu::expand_mask));
}
