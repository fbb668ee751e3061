// One perforated convolution as the CPU algorithms see it: every tensor checked, the input and all
// per-pixel operands in channels_last memory, the mask compacted, names resolved to enums.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "core/checks.h"
#include "core/geometry.h"
#include "cpu/active.h"

namespace perfconv::cpu {

struct ForwardProblem {
  ConvGeometry geometry;
  Tensor input;             // (N, C_in, H, W), channels_last memory
  Tensor weight;            // (C_out, C_in / groups, K_h, K_w); contiguous unless implicit
  OptionalTensor packed;    // see pack.h
  OptionalTensor bias;      // (C_out), contiguous
  OptionalTensor residual;  // (N, C_out, H_out, W_out), channels_last memory
  OptionalTensor base;      // the same, for Fill::kPassthrough
  Fill fill = Fill::kZero;
  Activation activation = Activation::kNone;
  Activation base_activation = Activation::kNone;
  const ActiveList* active = nullptr;
  // The implicit GEMM adds tap after tap: for rows that lie so far apart, by their dilation or by
  // their pixels, that a chunk's do not fit the second-level cache (KERNELS.md K-026).
  bool is_by_taps = false;
  Tensor output;  // (N, C_out, H_out, W_out), channels_last memory, uninitialised
};

// Each writes every active pixel of problem.output and, if it is the implicit one, the inactive
// pixels too (zero and passthrough fill); the others leave them to fill_inactive.
void forward_direct(const ForwardProblem& problem);
void forward_gather_gemm(const ForwardProblem& problem);
void forward_implicit_gemm(const ForwardProblem& problem);
void forward_grouped(const ForwardProblem& problem);

// Whether forward_grouped takes the problem; forward_implicit_gemm takes every one.
bool forward_fits_lanes(const ConvGeometry& g, ScalarType dtype);

// The output in the layout of the input: a new image, or problem.output if it is there. input and
// weight in any layout; kAuto asks the planner.
Tensor convolve(ForwardProblem problem, ConvAlgorithm wanted, bool channels_last);

// Inactive output pixels in the flat range [begin, end): zero or base; else nothing.
void fill_inactive(const ForwardProblem& problem, int64_t begin, int64_t end);
void fill_inactive(const ForwardProblem& problem);

// The same for a caller that writes the active pixels of the range afterwards: they may be
// overwritten here.
void fill_before(const ForwardProblem& problem, int64_t begin, int64_t end);

// In place, channels_last: every inactive pixel takes the value of the nearest active one of its
// image (smallest squared distance, ties to the lowest flat position), or 0 if there is none.
void fill_nearest(const Tensor& output, const ActiveList& active);

struct GradProblem {
  ConvGeometry geometry;
  Tensor grad_output;  // (N, C_out, H_out, W_out), channels_last memory
  Tensor operand;      // dgrad: weight, contiguous unless implicit; wgrad: input, channels_last
  const ActiveList* active = nullptr;
  // dgrad: (N, C_in, H, W), channels_last memory; wgrad: weight shape, contiguous, or channels_last
  // for the implicit GEMM. Uninitialised.
  Tensor result;
};

void dgrad_direct(const GradProblem& problem);
void dgrad_gather_gemm(const GradProblem& problem);
void dgrad_implicit_gemm(const GradProblem& problem);
void dgrad_depthwise(const GradProblem& problem);
void wgrad_direct(const GradProblem& problem);
void wgrad_gather_gemm(const GradProblem& problem);
void wgrad_implicit_gemm(const GradProblem& problem);
void wgrad_depthwise(const GradProblem& problem);
void dgrad_grouped(const GradProblem& problem);
void wgrad_grouped(const GradProblem& problem);

// Whether dgrad_grouped takes the problem; wgrad_grouped takes what forward_grouped does.
bool dgrad_fits_lanes(const ConvGeometry& g, ScalarType dtype);

// Where output pixel `position` reads: image, and the input coordinates of its first tap.
struct Receptive {
  int64_t image;
  int64_t y;
  int64_t x;
};

inline Receptive receptive_field(const ConvGeometry& g, int64_t position) {
  const auto flat = static_cast<uint32_t>(position);  // below 2^31: 32-bit divisions are faster
  const auto width = static_cast<uint32_t>(g.out_width);
  const auto height = static_cast<uint32_t>(g.out_height);
  const uint32_t row = flat / width;
  const uint32_t image = row / height;
  return {.image = image,
          .y = int64_t{row - image * height} * g.stride_h - g.pad_top,
          .x = int64_t{flat - row * width} * g.stride_w - g.pad_left};
}

}  // namespace perfconv::cpu
