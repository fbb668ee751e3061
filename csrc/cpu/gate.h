// The decision of a 1x1 gate.
#pragma once

#include "core/checks.h"
#include "core/geometry.h"

namespace perfconv::cpu {

// mask[p] = 1 where the logit "compute" of output pixel p is the larger one, else 0. rows: an image
// in channels_last memory; weight (2, C) or (2, C, 1, 1). The gate looks at the pixel (y stride_h,
// x stride_w) for the output pixel (y, x) of g, whose sizes and strides alone count.
void decide(const Tensor& rows, const Tensor& weight, const OptionalTensor& bias,
            const ConvGeometry& g, uint8_t* mask);

}  // namespace perfconv::cpu
