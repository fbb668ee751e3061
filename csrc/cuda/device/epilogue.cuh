// What happens to finished sums: bias, residual, activation, one rounding; and how they are stored,
// in runs of neighbouring channels of 16 bytes where rows and pointers allow it.
#pragma once

#include <cstdint>

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

// ---- runs of neighbouring channels
// --------------------------------------------------------------

template <class T>
constexpr int kRunSize = 16 / static_cast<int>(sizeof(T));  // of a vectorised access

template <class T, int kSize>
struct alignas(kSize * sizeof(T)) Run {
  T values[kSize];
};

template <class T, int kSize>
__device__ __forceinline__ Run<T, kSize> load_run(const void* image, int64_t offset) {
  return *reinterpret_cast<const Run<T, kSize>*>(static_cast<const T*>(image) + offset);
}

template <class T, int kSize>
__device__ __forceinline__ void store_run(void* image, int64_t offset, const Run<T, kSize>& run) {
  *reinterpret_cast<Run<T, kSize>*>(static_cast<T*>(image) + offset) = run;
}

// Whether the output, and what is read beside it, can be accessed in 16-byte runs (host side).
template <class T>
bool is_vector_image(int64_t channels, const Epilogue& epilogue, const void* output) {
  const auto is_aligned = [](const void* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
  };
  return channels % kRunSize<T> == 0 && is_aligned(output) && is_aligned(epilogue.bias) &&
         is_aligned(epilogue.residual) && is_aligned(epilogue.base);
}

// Finishes and stores kRunSize sums of one active pixel, those below `end`: of channels `channel`
// and following, `offset` and following in the output.
template <class T>
__device__ __forceinline__ void store_sums(const Epilogue& epilogue, const float* sums,
                                           bool is_vectorised, int64_t channel, int64_t end,
                                           int64_t offset, void* output) {
  constexpr int kSize = kRunSize<T>;
  if (!is_vectorised) {
    for (int i = 0; i < kSize && channel + i < end; ++i) {
      static_cast<T*>(output)[offset + i] = finish<T>(sums[i], epilogue, channel + i, offset + i);
    }
    return;
  }
  if (channel >= end) return;
  Run<T, kSize> bias{};
  Run<T, kSize> residual{};
  if (epilogue.bias != nullptr) bias = load_run<T, kSize>(epilogue.bias, channel);
  if (epilogue.residual != nullptr) residual = load_run<T, kSize>(epilogue.residual, offset);
  Run<T, kSize> result;
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    float sum = sums[i];
    if (epilogue.bias != nullptr) sum += to_sum(bias.values[i]);
    if (epilogue.residual != nullptr) sum += to_sum(residual.values[i]);
    result.values[i] = from_sum<T>(activate(sum, epilogue.activation));
  }
  store_run(output, offset, result);
}

}  // namespace perfconv::cuda
