// Dense convolution through torch's dispatcher, then epilogue and fill in place.
#include "cpu/dense.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>

#include "core/dense_forward.h"
#include "cpu/images.h"
#include "cpu/kernels/kernel_table.h"

namespace perfconv::cpu {
namespace {

// Residual and activation at the active pixels of image, into problem.output, which may be the same
// tensor; both in channels_last memory.
void finish_active(const ForwardProblem& problem, const Tensor& image) {
  const bool is_in_place = image.const_data_ptr() == problem.output.const_data_ptr();
  if (is_in_place && !problem.residual && problem.activation == Activation::kNone) return;
  const int64_t channels = problem.geometry.out_channels;
  visit_dtype("perforated_conv2d", problem.output.scalar_type(), [&]<class T>() {
    using Acc = AccumulateType<T>;
    const T* from = data<T>(image);
    T* out = mutable_data<T>(problem.output);
    const T* residual = problem.residual ? data<T>(*problem.residual) : nullptr;
    const RowKernel<T, Acc>& row = row_kernel<T>(kernels());
    parallel_rows(problem.active->count, channels, [&](int64_t begin, int64_t end) {
      std::vector<Acc> sums(static_cast<size_t>(channels));
      for (int64_t i = begin; i < end; ++i) {
        const int64_t offset = int64_t{problem.active->positions[i]} * channels;
        const T* plus = residual != nullptr ? residual + offset : nullptr;
        T* pixel = out + offset;
        row.widen(from + offset, sums.data(), channels);
        row.finish(sums.data(), channels, 1, nullptr, plus != nullptr ? &plus : nullptr,
                   problem.activation, &pixel, channels);
      }
    });
  });
}

// The activation of every pixel, in place: where nobody looks at the others, or there are none.
void activate_all(const Tensor& image, Activation activation) {
  visit_dtype("perforated_conv2d", image.scalar_type(), [&]<class T>() {
    T* values = mutable_data<T>(image);
    const auto activate = row_kernel<T>(kernels()).activate;
    constexpr int64_t kBlock = 4096;
    const int64_t blocks = (image.numel() + kBlock - 1) / kBlock;
    parallel_rows(blocks, kBlock / 16, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * kBlock;
      const int64_t last = std::min(end * kBlock, image.numel());
      activate(values + first, activation, values + first, last - first);
    });
  });
}

// Zero at inactive pixels of an (N, C, H, W)-contiguous image, plane by plane.
void zero_inactive_planes(const Tensor& image, const ActiveList& active) {
  const int64_t channels = image.size(1);
  const int64_t pixels = image.size(2) * image.size(3);
  const int64_t bytes = image.element_size();
  char* to_bytes = static_cast<char*>(image.mutable_data_ptr());
  parallel_rows(image.size(0) * channels, pixels, [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane) {
      const int64_t first = plane / channels * pixels;
      char* line = to_bytes + plane * pixels * bytes;
      int64_t next = first;
      for (int64_t i = active.lower_bound(first); next < first + pixels; ++i) {
        const bool is_in_image = i < active.count && active.positions[i] < first + pixels;
        const int64_t stop = is_in_image ? active.positions[i] : first + pixels;
        zero_bytes(line + (next - first) * bytes, (stop - next) * bytes);
        next = stop + 1;
      }
    }
  });
}

// What torch's convolution is given: its own float16 takes twice the time of float32 where the
// processor multiplies float16, crashes there (torch 2.13), and takes ten times as long elsewhere.
Tensor to_dense_dtype(const Tensor& values) {
  return values.defined() && values.scalar_type() == ScalarType::Half
             ? torch::stable::to(values, ScalarType::Float)
             : values;
}

Tensor from_dense_dtype(const Tensor& values, ScalarType dtype) {
  return values.defined() && values.scalar_type() != dtype ? torch::stable::to(values, dtype)
                                                           : values;
}

// A channels_last image, zero at inactive pixels.
Tensor masked_rows(const Tensor& rows, const ActiveList& active) {
  const Tensor result = empty_image(rows, size_vector(rows), true);
  const int64_t bytes = rows.size(1) * rows.element_size();
  const auto* from_bytes = static_cast<const char*>(rows.const_data_ptr());
  auto* to_bytes = static_cast<char*>(result.mutable_data_ptr());
  const int64_t pixels = rows.size(0) * rows.size(2) * rows.size(3);
  parallel_rows(pixels, bytes / 64, [&](int64_t begin, int64_t end) {
    int64_t next = begin;
    for (int64_t i = active.lower_bound(begin); next < end; ++i) {
      const int64_t position = i < active.count ? std::min<int64_t>(active.positions[i], end) : end;
      zero_bytes(to_bytes + next * bytes, (position - next) * bytes);
      if (position < end)
        copy_bytes(to_bytes + position * bytes, from_bytes + position * bytes, bytes);
      next = position + 1;
    }
  });
  return result;
}

}  // namespace

Tensor forward_dense(const ForwardProblem& problem, bool channels_last) {
  ForwardProblem dense = problem;
  const ConvGeometry& g = problem.geometry;
  const OptionalTensor bias =
      problem.bias ? OptionalTensor(to_dense_dtype(*problem.bias)) : problem.bias;
  const Tensor image = from_dense_dtype(
      dense_forward(to_dense_dtype(problem.input), to_dense_dtype(problem.weight), bias, g),
      problem.input.scalar_type());
  if (problem.output.defined()) {
    finish_active(problem, to_channels_last(image));
    fill_inactive(problem);
    return problem.output;
  }
  const bool is_full = problem.active->count == g.out_pixels();
  if ((is_full || problem.fill == Fill::kNone) && !problem.residual) {
    const Tensor result = channels_last ? to_channels_last(image) : to_contiguous(image);
    if (problem.activation != Activation::kNone) activate_all(result, problem.activation);
    return result;
  }
  const bool has_epilogue = problem.residual || problem.activation != Activation::kNone;
  if (problem.fill == Fill::kZero && !has_epilogue && !channels_last && image.is_contiguous()) {
    zero_inactive_planes(image, *problem.active);
    return image;
  }
  dense.output = to_channels_last(image);
  finish_active(dense, dense.output);
  fill_inactive(dense);
  if (dense.fill == Fill::kNearest) fill_nearest(dense.output, *dense.active);
  return in_layout(dense.output, channels_last);
}

DenseGrads backward_dense(const ConvGeometry& g, const Tensor& grad_output, const Tensor& input,
                          const Tensor& weight, const ActiveList& active, DenseWish wish) {
  const bool is_full = active.count == g.out_pixels();
  const Tensor masked = is_full ? grad_output : masked_rows(to_channels_last(grad_output), active);
  const DenseGrads grads = dense_backward(to_dense_dtype(masked), to_dense_dtype(input),
                                          to_dense_dtype(weight), g, wish);
  const ScalarType dtype = grad_output.scalar_type();
  return {.input = from_dense_dtype(grads.input, dtype),
          .weight = from_dense_dtype(grads.weight, dtype),
          .bias = from_dense_dtype(grads.bias, dtype)};
}

}  // namespace perfconv::cpu
