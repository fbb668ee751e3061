// Masks: compaction to active-pixel lists and the input pixels that active outputs read.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <tuple>
#include <vector>

#include "core/conv_arguments.h"
#include "cpu/active.h"
#include "cpu/images.h"
#include "cpu/kernels/kernel_table.h"

namespace perfconv::cpu {

int64_t ActiveList::lower_bound(int64_t position) const {
  return std::lower_bound(positions.get(), positions.get() + count, position) - positions.get();
}

ActiveList compact(const uint8_t* mask, int64_t images, int64_t pixels, int64_t batch) {
  ActiveList list;
  list.positions.reset(new int32_t[static_cast<size_t>(batch * pixels + kSpareEntries)]);
  if (images == batch) {
    list.count = kernels().compact(mask, batch * pixels, 0, list.positions.get());
    return list;
  }
  for (int64_t n = 0; n < batch; ++n) {
    list.count += kernels().compact(mask, pixels, static_cast<int32_t>(n * pixels),
                                    list.positions.get() + list.count);
  }
  return list;
}

ActiveList compact(const Tensor& mask, int64_t batch) {
  const Tensor bytes = in_order(mask);
  return compact(data<uint8_t>(bytes), mask.size(0), mask.size(2) * mask.size(3), batch);
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

// Along one axis: the outputs [begin, end) whose tap at `offset` from their first one lies inside.
struct OutputRange {
  int64_t begin;
  int64_t end;
};

OutputRange outputs_inside(int64_t offset, int64_t stride, int64_t outputs, int64_t inputs) {
  const int64_t begin = offset < 0 ? (-offset + stride - 1) / stride : 0;
  const int64_t end = offset < inputs ? (inputs - offset + stride - 1) / stride : 0;
  return {begin, std::min(end, outputs)};
}

// The taps whose offset, `tap * dilation - before`, lies in (-reach, inputs): no others read an
// input.
struct TapRange {
  int64_t begin;
  int64_t end;
};

TapRange taps_inside(int64_t taps, int64_t dilation, int64_t before, int64_t reach,
                     int64_t inputs) {
  const int64_t first = before - reach + 1;
  const int64_t begin = first > 0 ? (first + dilation - 1) / dilation : 0;
  const int64_t end = inputs + before > 0 ? (inputs + before + dilation - 1) / dilation : 0;
  return {begin, std::min(end, taps)};
}

// to[i * stride] |= from[i], 0 or 1.
void mark(const uint8_t* from, int64_t count, int64_t stride, uint8_t* to) {
  if (stride == 1) {
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<uint8_t>(to[i] | (from[i] != 0));
  } else {
    for (int64_t i = 0; i < count; ++i) to[i * stride] |= from[i] != 0 ? 1 : 0;
  }
}

}  // namespace

// Rows first: where the taps of a row of outputs reach along it. Then that row into each row of
// inputs that they reach. Whole rows at a time, whatever the density.
void expand(const uint8_t* mask, int64_t images, const ConvGeometry& g, uint8_t* to) {
  if (g.in_width == 0) return;
  std::vector<uint8_t> row(static_cast<size_t>(g.in_width));
  const TapRange along = taps_inside(g.kernel_width, g.dilation_w, g.pad_left,
                                     (g.out_width - 1) * g.stride_w + 1, g.in_width);
  for (int64_t line = 0; line < images * g.out_height; ++line) {
    std::fill(row.begin(), row.end(), uint8_t{0});
    for (int64_t kw = along.begin; kw < along.end; ++kw) {
      const int64_t offset = kw * g.dilation_w - g.pad_left;
      const OutputRange x = outputs_inside(offset, g.stride_w, g.out_width, g.in_width);
      if (x.begin >= x.end) continue;
      mark(mask + line * g.out_width + x.begin, x.end - x.begin, g.stride_w,
           row.data() + x.begin * g.stride_w + offset);
    }
    const int64_t y = line % g.out_height * g.stride_h - g.pad_top;
    uint8_t* image = to + line / g.out_height * g.in_height * g.in_width;
    const TapRange down = taps_inside(g.kernel_height, g.dilation_h, -y, 1, g.in_height);
    for (int64_t kh = down.begin; kh < down.end; ++kh) {
      const int64_t in_y = y + kh * g.dilation_h;
      mark(row.data(), g.in_width, 1, image + in_y * g.in_width);
    }
  }
}

namespace {

Tensor expand_mask(const Tensor& mask, const std::vector<int64_t>& kernel_size,
                   const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                   const std::vector<int64_t>& dilation, const std::vector<int64_t>& input_size) {
  const ConvGeometry g =
      check_expand_mask(mask, kernel_size, stride, padding, dilation, input_size);
  const Tensor expanded = torch::stable::new_zeros(mask, {g.batch, 1, g.in_height, g.in_width});
  if (expanded.numel() == 0) return expanded;
  const Tensor bytes = in_order(mask);
  expand(data<uint8_t>(bytes), g.batch, g, mutable_data<uint8_t>(expanded));
  return expanded;
}

}  // namespace
}  // namespace perfconv::cpu

STABLE_TORCH_LIBRARY_IMPL(perfconv, CPU, m) {
  m.impl("compact_mask", TORCH_BOX(&perfconv::cpu::compact_mask));
  m.impl("expand_mask", TORCH_BOX(&perfconv::cpu::expand_mask));
}
