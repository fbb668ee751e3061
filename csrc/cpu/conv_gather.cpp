// The textbook path, each step on its own: gather the receptive fields of the active pixels into a
// matrix (im2col), multiply it with the weight (torch's GEMM), scatter the rows. Kept to compare
// with and to learn from; 16-bit types are multiplied in float.
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "cpu/conv.h"
#include "cpu/images.h"
#include "cpu/kernels/kernel_table.h"

namespace perfconv::cpu {
namespace {

template <class Acc>
constexpr ScalarType kSumType =
    std::is_same_v<Acc, double> ? ScalarType::Double : ScalarType::Float;

// Calls function(c * taps + tap, offset into the NHWC input or -1) for one output pixel and group.
template <class Function>
void visit_columns(const ConvGeometry& g, int64_t position, int64_t group, Function function) {
  const Receptive field = receptive_field(g, position);
  const int64_t channels = g.group_in_channels();
  for (int64_t tap = 0; tap < g.taps(); ++tap) {
    const int64_t y = field.y + tap / g.kernel_width * g.dilation_h;
    const int64_t x = field.x + tap % g.kernel_width * g.dilation_w;
    const bool is_inside = y >= 0 && y < g.in_height && x >= 0 && x < g.in_width;
    const int64_t first =
        ((field.image * g.in_height + y) * g.in_width + x) * g.in_channels + group * channels;
    for (int64_t c = 0; c < channels; ++c) {
      function(c * g.taps() + tap, is_inside ? first + c : int64_t{-1});
    }
  }
}

// (active pixels, C_in / groups * taps) of one group.
template <class T, class Acc>
Tensor im2col(const ConvGeometry& g, const ActiveList& active, const T* input, int64_t group) {
  const int64_t depth = g.group_in_channels() * g.taps();
  const Tensor columns = torch::stable::empty({active.count, depth}, kSumType<Acc>);
  Acc* to = mutable_data<Acc>(columns);
  parallel_rows(active.count, depth, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      visit_columns(g, active.positions[i], group, [&](int64_t column, int64_t from) {
        to[i * depth + column] = from < 0 ? Acc(0) : Acc(to_float(input[from]));
      });
    }
  });
  return columns;
}

// (active pixels, C_out / groups): the rows of one group of an NHWC image over the output grid.
template <class T, class Acc>
Tensor gather_rows(const ConvGeometry& g, const ActiveList& active, const T* image, int64_t group) {
  const int64_t width = g.group_out_channels();
  const Tensor rows = torch::stable::empty({active.count, width}, kSumType<Acc>);
  Acc* to = mutable_data<Acc>(rows);
  for (int64_t i = 0; i < active.count; ++i) {
    row_kernel<T>(kernels()).widen(
        image + int64_t{active.positions[i]} * g.out_channels + group * width, to + i * width,
        width);
  }
  return rows;
}

// (C_out / groups, C_in / groups * taps): one group of a weight.
template <class T, class Acc>
Tensor weight_matrix(const ConvGeometry& g, const T* weight, int64_t group) {
  const int64_t elements = g.group_out_channels() * g.group_in_channels() * g.taps();
  const Tensor matrix = torch::stable::empty(
      {g.group_out_channels(), g.group_in_channels() * g.taps()}, kSumType<Acc>);
  row_kernel<T>(kernels()).widen(weight + group * elements, mutable_data<Acc>(matrix), elements);
  return matrix;
}

}  // namespace

void forward_gather_gemm(const ForwardProblem& problem) {
  const ConvGeometry& g = problem.geometry;
  const ActiveList& active = *problem.active;
  if (active.count == 0) return;
  visit_dtype("perforated_conv2d", problem.input.scalar_type(), [&]<class T>() {
    using Acc = AccumulateType<T>;
    const int64_t width = g.group_out_channels();
    const T* residual = problem.residual ? data<T>(*problem.residual) : nullptr;
    T* out = mutable_data<T>(problem.output);
    std::vector<Acc> bias(static_cast<size_t>(g.out_channels), Acc(0));
    if (problem.bias) {
      row_kernel<T>(kernels()).widen(data<T>(*problem.bias), bias.data(), g.out_channels);
    }
    for (int64_t group = 0; group < g.groups; ++group) {
      const Tensor columns = im2col<T, Acc>(g, active, data<T>(problem.input), group);
      const Tensor matrix = weight_matrix<T, Acc>(g, data<T>(problem.weight), group);
      const Tensor rows =
          torch::stable::contiguous(torch::stable::matmul(columns, transpose(matrix, 0, 1)));
      for (int64_t i = 0; i < active.count; ++i) {
        const int64_t offset = int64_t{active.positions[i]} * g.out_channels + group * width;
        const T* plus = residual != nullptr ? residual + offset : nullptr;
        T* to = out + offset;
        row_kernel<T>(kernels()).finish(
            data<Acc>(rows) + i * width, width, 1, bias.data() + group * width,
            plus != nullptr ? &plus : nullptr, problem.activation, &to, width);
      }
    }
  });
}

void dgrad_gather_gemm(const GradProblem& problem) {
  const ConvGeometry& g = problem.geometry;
  const ActiveList& active = *problem.active;
  visit_dtype("perforated_conv2d_dgrad", problem.result.scalar_type(), [&]<class T>() {
    using Acc = AccumulateType<T>;
    std::vector<Acc> sums(static_cast<size_t>(g.in_pixels() * g.in_channels), Acc(0));
    const int64_t depth = g.group_in_channels() * g.taps();
    for (int64_t group = 0; group < g.groups && active.count > 0; ++group) {
      const Tensor rows = gather_rows<T, Acc>(g, active, data<T>(problem.grad_output), group);
      const Tensor matrix = weight_matrix<T, Acc>(g, data<T>(problem.operand), group);
      const Tensor columns = torch::stable::contiguous(torch::stable::matmul(rows, matrix));
      const Acc* from = data<Acc>(columns);
      for (int64_t i = 0; i < active.count; ++i) {  // col2im
        visit_columns(g, active.positions[i], group, [&](int64_t column, int64_t to) {
          if (to >= 0) sums[to] += from[i * depth + column];
        });
      }
    }
    row_kernel<T>(kernels()).narrow(sums.data(), mutable_data<T>(problem.result),
                                    g.in_pixels() * g.in_channels);
  });
}

void wgrad_gather_gemm(const GradProblem& problem) {
  const ConvGeometry& g = problem.geometry;
  const ActiveList& active = *problem.active;
  visit_dtype("perforated_conv2d_wgrad", problem.result.scalar_type(), [&]<class T>() {
    using Acc = AccumulateType<T>;
    T* result = mutable_data<T>(problem.result);
    const int64_t elements = g.group_out_channels() * g.group_in_channels() * g.taps();
    for (int64_t group = 0; group < g.groups; ++group) {
      T* to = result + group * elements;
      if (active.count == 0) {
        std::fill_n(to, elements, T{});
        continue;
      }
      const Tensor columns = im2col<T, Acc>(g, active, data<T>(problem.operand), group);
      const Tensor rows = gather_rows<T, Acc>(g, active, data<T>(problem.grad_output), group);
      const Tensor product =
          torch::stable::contiguous(torch::stable::matmul(transpose(rows, 0, 1), columns));
      row_kernel<T>(kernels()).narrow(data<Acc>(product), to, elements);
    }
  });
}

}  // namespace perfconv::cpu
