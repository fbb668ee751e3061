// The nearest fill as other operators use it.
#pragma once

#include "cuda/device_call.h"

namespace perfconv::cuda {

// In place: every inactive pixel of image (pixels of the mask, channels) takes the value of the
// nearest active one of its image (smallest squared distance, ties to the lowest flat position),
// or 0 if there is none.
void fill_nearest(DeviceCall& call, const MaskArgs& mask, StorageType storage, int64_t channels,
                  void* image);

}  // namespace perfconv::cuda
