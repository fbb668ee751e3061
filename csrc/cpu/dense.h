// The dense convolution of torch (oneDNN) with the epilogue and the fill of a perforated one: what
// runs above the break-even density. The one path on which inputs outside the active receptive
// field can reach a result: its weight gradient multiplies them by 0.
#pragma once

#include "core/dense_backward.h"
#include "cpu/conv.h"

namespace perfconv::cpu {

// problem.input in its own memory format, problem.output unused. The result has that format.
Tensor forward_dense(const ForwardProblem& problem, bool channels_last);

// torch's convolution_backward of the masked gradient, called once, in the memory format that torch
// chooses; what is not wished for stays undefined.
DenseGrads backward_dense(const ConvGeometry& g, const Tensor& grad_output, const Tensor& input,
                          const Tensor& weight, const ActiveList& active, DenseWish wish);

}  // namespace perfconv::cpu
