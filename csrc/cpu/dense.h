// The dense convolution of torch (oneDNN) with the epilogue and the fill of a perforated one: what
// runs above the break-even density. The one path that reads inputs outside the active receptive
// field.
#pragma once

#include "cpu/conv.h"

namespace perfconv::cpu {

// problem.input in its own memory format, problem.output unused. The result has that format.
Tensor forward_dense(const ForwardProblem& problem, bool channels_last);

// dgrad (wants_input) or wgrad through torch's convolution_backward on the masked dY.
Tensor backward_dense(const GradProblem& problem, bool wants_input);

}  // namespace perfconv::cpu
