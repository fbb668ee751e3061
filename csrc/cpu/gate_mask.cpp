// The gate on the CPU: logits, decision and compaction.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <tuple>
#include <vector>

#include "core/conv_arguments.h"
#include "cpu/active.h"
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

// mask[p] = logits[1] > logits[0], soft[p] = softmax(logits)[1] unless soft is null.
template <class T>
void decide(const Tensor& rows, const Tensor& weight, const OptionalTensor& bias, uint8_t* mask,
            T* soft) {
  using Acc = AccumulateType<T>;
  const int64_t channels = rows.size(1);
  const int64_t pixels = rows.size(0) * rows.size(2) * rows.size(3);
  const std::vector<Acc> wide = widened<T, Acc>(weight, 2 * channels);
  const std::vector<Acc> offsets = widened<T, Acc>(bias, 2);
  const T* input = data<T>(rows);
  const RowKernel<T, Acc>& row = row_kernel<T>(kernels());
  parallel_rows(pixels, channels / 8 + 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      Acc sums[2];
      row.dot_pair(input + p * channels, wide.data(), wide.data() + channels, sums, channels);
      const Acc skip = sums[0] + offsets[0];
      const Acc compute = sums[1] + offsets[1];
      mask[p] = compute > skip ? 1 : 0;  // NaN: no
      if (soft != nullptr) soft[p] = from_float<T>(Acc(1) / (Acc(1) + std::exp(skip - compute)));
    }
  });
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
    decide<T>(rows, weight, bias, mutable_data<uint8_t>(mask),
              wants_soft ? mutable_data<T>(soft) : nullptr);
  });
  const auto [active_idx, count, image_counts] =
      list_tensors(compact(mask, shape[0]), shape[0], mask.numel());
  return {soft, mask, active_idx, count, image_counts};
}

}  // namespace
}  // namespace perfconv::cpu

STABLE_TORCH_LIBRARY_IMPL(perfconv, CPU, m) {
  m.impl("gate_mask", TORCH_BOX(&perfconv::cpu::gate_mask));
}
