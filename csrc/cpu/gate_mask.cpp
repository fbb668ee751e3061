// The gate on the CPU: logits, decision and compaction.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "core/conv_arguments.h"
#include "cpu/active.h"
#include "cpu/gate.h"
#include "cpu/images.h"
#include "cpu/kernels/kernel_table.h"

namespace perfconv::cpu {
namespace {

// values in the type of the sums; zeros without any.
template <class T, class Acc>
std::vector<Acc> widened(const OptionalTensor& values, int64_t length) {
  std::vector<Acc> wide(static_cast<size_t>(length), Acc(0));
  if (values) {
    row_kernel<T>(kernels()).widen(data<T>(torch::stable::contiguous(*values)), wide.data(),
                                   length);
  }
  return wide;
}

// A thread reads its pixels in that many places at a time, each a little ahead: the hardware's own
// prefetches end with each page, four pixels of 256 channels (KERNELS.md K-041, K-072).
constexpr int64_t kStreams = 4;
constexpr int64_t kBytesAhead = 2 << 10;

// Into the first level. A hint, past the end of the image too.
template <class T>
void prefetch(const T* row, int64_t channels) {
  const char* begin = reinterpret_cast<const char*>(row);
  const int64_t bytes = channels * static_cast<int64_t>(sizeof(T));
  for (int64_t i = 0; i < bytes; i += kCacheLine) __builtin_prefetch(begin + i, 0, 3);
}

// The input pixels that a gate looks at, in the order of its output pixels.
template <class T>
class GatePixels {
 public:
  GatePixels() = default;
  GatePixels(const T* input, int64_t channels, const ConvGeometry& g, int64_t first)
      : line_(first / g.out_width), column_(first % g.out_width) {
    row_ = row_of(input, channels, g);
  }

  const T* row() const { return row_; }

  void advance(const T* input, int64_t channels, const ConvGeometry& g) {
    row_ += g.stride_w * channels;
    if (++column_ < g.out_width) return;
    column_ = 0;
    ++line_;
    row_ = row_of(input, channels, g);
  }

 private:
  const T* row_of(const T* input, int64_t channels, const ConvGeometry& g) const {
    const int64_t y = line_ % g.out_height * g.stride_h;
    const int64_t pixel = (line_ / g.out_height * g.in_height + y) * g.in_width;
    return input + (pixel + column_ * g.stride_w) * channels;
  }

  int64_t line_ = 0;
  int64_t column_ = 0;
  const T* row_ = nullptr;
};

// As decide() of gate.h; soft[p] = softmax(logits)[1] unless soft is null.
template <class T>
void decide(const Tensor& rows, const Tensor& weight, const OptionalTensor& bias,
            const ConvGeometry& g, uint8_t* mask, T* soft) {
  using Acc = AccumulateType<T>;
  const int64_t channels = rows.size(1);
  const std::vector<Acc> wide = widened<T, Acc>(weight, 2 * channels);
  const std::vector<Acc> offsets = widened<T, Acc>(bias, 2);
  const T* input = data<T>(rows);
  const RowKernel<T, Acc>& row = row_kernel<T>(kernels());
  const int64_t step = std::max<int64_t>(1, g.stride_w * channels);
  const int64_t ahead = (kBytesAhead / static_cast<int64_t>(sizeof(T)) / step + 1) * step;
  parallel_rows(g.out_pixels(), channels / 8 + 1, [&](int64_t begin, int64_t end) {
    const int64_t share = (end - begin + kStreams - 1) / kStreams;
    GatePixels<T> pixels[kStreams];
    for (int64_t s = 0; s < kStreams; ++s) {
      if (begin + s * share < end) pixels[s] = {input, channels, g, begin + s * share};
    }
    for (int64_t i = 0; i < share; ++i) {
      for (int64_t p = begin + i, s = 0; p < end && s < kStreams; p += share, ++s) {
        Acc sums[2];
        prefetch(pixels[s].row() + ahead, channels);
        row.dot_pair(pixels[s].row(), wide.data(), wide.data() + channels, sums, channels);
        pixels[s].advance(input, channels, g);
        const Acc skip = sums[0] + offsets[0];
        const Acc compute = sums[1] + offsets[1];
        mask[p] = compute > skip ? 1 : 0;  // NaN: no
        if (soft != nullptr) soft[p] = from_float<T>(Acc(1) / (Acc(1) + std::exp(skip - compute)));
      }
    }
  });
}

ConvGeometry every_pixel(const Tensor& image) {
  ConvGeometry g{.batch = image.size(0), .in_height = image.size(2), .in_width = image.size(3)};
  g.out_height = g.in_height;
  g.out_width = g.in_width;
  return g;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> gate_mask(const Tensor& input,
                                                             const Tensor& weight,
                                                             const OptionalTensor& bias,
                                                             bool wants_soft) {
  check_gate_mask(input, weight, bias);
  const std::vector<int64_t> shape{input.size(0), 1, input.size(2), input.size(3)};
  const Tensor mask = torch::stable::new_empty(input, shape, ScalarType::Bool);
  const Tensor soft = torch::stable::new_empty(input, wants_soft ? shape : std::vector<int64_t>{0});
  const Tensor rows = to_channels_last(input);
  visit_dtype("gate_mask", input.scalar_type(), [&]<class T>() {
    decide<T>(rows, weight, bias, every_pixel(rows), mutable_data<uint8_t>(mask),
              wants_soft ? mutable_data<T>(soft) : nullptr);
  });
  const auto [active_idx, count, image_counts] =
      list_tensors(compact(mask, shape[0]), shape[0], mask.numel());
  return {soft, mask, active_idx, count, image_counts};
}

}  // namespace

void decide(const Tensor& rows, const Tensor& weight, const OptionalTensor& bias,
            const ConvGeometry& g, uint8_t* mask) {
  visit_dtype("gate_mask", rows.scalar_type(),
              [&]<class T>() { decide<T>(rows, weight, bias, g, mask, static_cast<T*>(nullptr)); });
}

}  // namespace perfconv::cpu

STABLE_TORCH_LIBRARY_IMPL(perfconv, CPU, m) {
  m.impl("gate_mask", TORCH_BOX(&perfconv::cpu::gate_mask));
}
