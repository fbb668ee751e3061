// algorithm="gather_gemm" on CUDA: the textbook path, each step a kernel of its own. Kept to
// compare with and to learn from.
#pragma once

#include "cuda/device_call.h"

namespace perfconv::cuda {

// im2col, GEMM, epilogue with the fill (not the nearest one).
void forward_gather_gemm(DeviceCall& call, const ForwardArgs& args);

// Rows of active pixels, GEMM, col2im. args.operand is the weight (C_out, K_h, K_w, C_in / groups).
void dgrad_gather_gemm(DeviceCall& call, const GradArgs& args);

// im2col, rows of active pixels, GEMM over the active pixels.
void wgrad_gather_gemm(DeviceCall& call, const GradArgs& args);

}  // namespace perfconv::cuda
