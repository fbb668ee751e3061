// The dense algorithm of perforated_conv2d on CUDA: torch's convolution, then one kernel that
// writes residual, activation and fill in place.
#pragma once

#include "core/conv_arguments.h"
#include "cuda/kernels/launch.h"

namespace perfconv::cuda {

// The result as rows of channels. epilogue names activations and fill; its pointers are not used.
Tensor forward_dense(const char* op, const ForwardTensors& tensors, const ConvGeometry& g,
                     Epilogue epilogue);

}  // namespace perfconv::cuda
