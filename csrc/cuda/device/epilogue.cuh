// What happens to finished sums: bias, residual and activation at active pixels, the fill
// elsewhere.
#pragma once

#include "cuda/device/element.cuh"
#include "cuda/kernels/launch.h"

namespace perfconv::cuda {

template <class Sum>
__device__ __forceinline__ Sum activate(Sum value, Activation activation) {
  switch (activation) {
    case Activation::kNone:
      return value;
    case Activation::kRelu:  // written so that NaN stays NaN, as in torch
      return value < Sum(0) ? Sum(0) : value;
    case Activation::kRelu6:
      return value < Sum(0) ? Sum(0) : value > Sum(6) ? Sum(6) : value;
    case Activation::kSilu:
      return value / (Sum(1) + exp(-value));
    case Activation::kHardswish: {
      const Sum shifted = value + Sum(3);
      const Sum gate = shifted < Sum(0) ? Sum(0) : shifted > Sum(6) ? Sum(6) : shifted;
      return value * gate / Sum(6);
    }
  }
  return value;
}

// The stored value of one active element; offset is its place in the output.
template <class T>
__device__ __forceinline__ T finish(SumType<T> sum, const Epilogue& epilogue, int64_t channel,
                                    int64_t offset) {
  if (epilogue.bias != nullptr) sum += to_sum(static_cast<const T*>(epilogue.bias)[channel]);
  if (epilogue.residual != nullptr) {
    sum += to_sum(static_cast<const T*>(epilogue.residual)[offset]);
  }
  return from_sum<T>(activate(sum, epilogue.activation));
}

__device__ __forceinline__ bool is_active(const MaskArgs& mask, int64_t position) {
  const int64_t flat = mask.is_shared ? position % (mask.height * mask.width) : position;
  return mask.mask[flat] != 0;
}

// Writes the inactive pixels of the output (zero or base), element by element: called by every
// thread of the grid with its number among them. Disjoint from what active pixels write.
template <class T>
__device__ __forceinline__ void fill_inactive(const ForwardArgs& args, int64_t thread,
                                              int64_t threads) {
  if (args.epilogue.fill == Fill::kNearest) return;
  const T* base = static_cast<const T*>(args.epilogue.base);
  T* output = static_cast<T*>(args.output);
  const int64_t channels = args.geometry.out_channels;
  const int64_t elements = args.mask.pixels() * channels;
  for (int64_t i = thread; i < elements; i += threads) {
    if (is_active(args.mask, i / channels)) continue;
    const SumType<T> value = base != nullptr ? to_sum(base[i]) : SumType<T>(0);
    output[i] = base != nullptr ? from_sum<T>(activate(value, args.epilogue.base_activation))
                                : from_sum<T>(SumType<T>(0));
  }
}

}  // namespace perfconv::cuda
