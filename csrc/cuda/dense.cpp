#include "cuda/dense.h"

#include "core/dense_forward.h"
#include "cuda/active.h"
#include "cuda/device_call.h"
#include "cuda/images.h"
#include "cuda/nearest.h"

namespace perfconv::cuda {

Tensor forward_dense(const char* op, const ForwardTensors& tensors, const ConvGeometry& g,
                     Epilogue epilogue) {
  const Tensor output =
      to_rows(dense_forward(to_rows(tensors.input), to_rows(tensors.weight), tensors.bias, g));
  const Tensor mask = torch::stable::contiguous(tensors.mask);
  const OptionalTensor residual = to_rows(tensors.residual);
  const OptionalTensor base = to_rows(tensors.base);
  DeviceCall call(op, tensors.input);
  epilogue.residual = call.read(residual);
  epilogue.base = call.read(base);
  const MaskArgs mask_bytes = mask_args(call, mask, g.batch);
  const StorageType storage = storage_type(output.scalar_type());
  void* image = call.write(output);
  call.check(launch_blend(call.context(), storage, mask_bytes, epilogue, g.out_channels, image));
  if (epilogue.fill == Fill::kNearest) {
    fill_nearest(call, mask_bytes, storage, g.out_channels, image);
  }
  return output;
}

}  // namespace perfconv::cuda
