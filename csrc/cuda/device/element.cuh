// Element types on the device: conversions to the type that sums are kept in, and back.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "core/geometry.h"

namespace perfconv::cuda {

// Sums are float32, of float64 float64.
template <class T>
using SumType = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T>
__device__ __forceinline__ SumType<T> to_sum(T value) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __bfloat162float(value);
  } else if constexpr (std::is_same_v<T, __half>) {
    return __half2float(value);
  } else {
    return value;
  }
}

// Rounds to nearest even.
template <class T>
__device__ __forceinline__ T from_sum(SumType<T> value) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(value);
  } else if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(value);
  } else {
    return value;
  }
}

// Calls function(TypeTag<T>()) with the device type of a storage class (host side).
template <class T>
struct TypeTag {
  using Type = T;
};

template <class Function>
cudaError_t visit_storage(StorageType storage, Function function) {
  switch (storage) {
    case StorageType::kFloat:
      return function(TypeTag<float>());
    case StorageType::kDouble:
      return function(TypeTag<double>());
    case StorageType::kBFloat16:
      return function(TypeTag<__nv_bfloat16>());
    case StorageType::kHalf:
      return function(TypeTag<__half>());
  }
  return cudaErrorInvalidValue;
}

// The same for kernels without float64, which the planner refuses for them.
template <class Function>
cudaError_t visit_single(StorageType storage, Function function) {
  return visit_storage(storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    if constexpr (std::is_same_v<T, double>) {
      return cudaErrorInvalidValue;
    } else {
      return function(tag);
    }
  });
}

}  // namespace perfconv::cuda
