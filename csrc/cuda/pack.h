// Packs of weights, as pack_weight makes them on CUDA.
#pragma once

#include "core/geometry.h"
#include "cuda/device_call.h"

namespace perfconv::cuda {

// What kernels may read of a pack: nothing, unless it has the length, dtype and device of one of
// this weight. branches: of a weight that was packed branch by branch, else 1. Whether it holds the
// values of the weight is seen on the device, in every call.
PackedWeight usable_pack(DeviceCall& call, const OptionalTensor& packed, const Tensor& weight,
                         const ConvGeometry& geometry, int64_t branches);

}  // namespace perfconv::cuda
