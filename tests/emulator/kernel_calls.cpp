// Launchers that no operator calls on its own, as operators of the emulated library, so that their
// tests need no detour.
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "core/conv_arguments.h"
#include "core/registration.h"
#include "cuda/active.h"
#include "cuda/device_call.h"

namespace perfconv::cuda {
namespace {

std::tuple<Tensor, Tensor> counting_sort(const Tensor& keys, int64_t bits) {
  const SortArgs shape{
      .bits = static_cast<int>(bits), .capacity = keys.size(1), .lists = keys.size(0)};
  const Tensor sorted = torch::stable::empty_like(keys);
  const Tensor starts =
      torch::stable::new_empty(keys, {shape.lists, (1 << bits) + 1}, ScalarType::Int);
  {
    DeviceCall call("counting_sort", keys);
    SortArgs args = shape;
    args.keys = call.read<uint32_t>(keys);
    call.check(launch_counting_sort(call.context(), args,
                                    call.scratch(counting_sort_workspace(args)),
                                    call.write<int32_t>(sorted), call.write<int32_t>(starts)));
  }
  return {sorted, starts};
}

std::tuple<Tensor, Tensor> tap_patterns(const Tensor& mask, const std::vector<int64_t>& input_size,
                                        const std::vector<int64_t>& kernel_size,
                                        const std::vector<int64_t>& stride,
                                        const std::vector<int64_t>& padding,
                                        const std::vector<int64_t>& dilation) {
  const ConvGeometry g =
      check_expand_mask(mask, kernel_size, stride, padding, dilation, input_size);
  const Tensor patterns = torch::stable::new_empty(mask, {g.in_pixels()}, ScalarType::Int);
  const Tensor keys = torch::stable::new_empty(mask, {g.in_pixels()}, ScalarType::Int);
  {
    DeviceCall call("tap_patterns", mask);
    call.check(launch_tap_patterns(call.context(), g, mask_args(call, mask, g.batch),
                                   call.write<uint32_t>(patterns), call.write<uint32_t>(keys)));
  }
  return {patterns, keys};
}

}  // namespace
}  // namespace perfconv::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(perfconv_emulated, m) {
  m.def("counting_sort(Tensor keys, int bits) -> (Tensor sorted, Tensor starts)");
  m.def(
      "tap_patterns(Tensor mask, int[2] input_size, int[2] kernel_size, int[2] stride, "
      "int[4] padding, int[2] dilation) -> (Tensor patterns, Tensor keys)");
}

STABLE_TORCH_LIBRARY_IMPL(perfconv_emulated, CPU, m) {
  m.impl("counting_sort", TORCH_BOX(&perfconv::cuda::counting_sort));
  m.impl("tap_patterns", TORCH_BOX(&perfconv::cuda::tap_patterns));
}
