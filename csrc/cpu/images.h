// Images as rows of channels: layout rules, allocation and dtype dispatch shared by the CPU
// operators. Every kernel works on channels_last memory, where a pixel is one contiguous row.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstring>
#include <utility>
#include <vector>

#include "core/checks.h"
#include "core/element.h"
#include "cpu/layout.h"

namespace perfconv::cpu {

using torch::headeronly::MemoryFormat;

// The layout rule of the library, the same in the fake kernels: an input is channels_last if it is
// not contiguous as (N, C, H, W) and its channels are neighbours in memory.
inline bool is_channels_last(const Tensor& image) {
  return !image.is_contiguous() && image.size(1) > 1 && image.stride(1) == 1;
}

inline Tensor empty_image(const Tensor& like, const std::vector<int64_t>& shape,
                          bool channels_last) {
  return torch::stable::empty(
      shape, like.scalar_type(), std::nullopt, std::nullopt, std::nullopt,
      channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

// The storage class of a dtype as a template argument of function.
template <class Function>
void visit_dtype(const char* op, ScalarType dtype, Function function) {
  switch (dtype) {
    case ScalarType::Float:
      return function.template operator()<float>();
    case ScalarType::Double:
      return function.template operator()<double>();
    case ScalarType::BFloat16:
      return function.template operator()<BFloat16>();
    case ScalarType::Half:
      return function.template operator()<Half>();
    default:
      fail(op, "the dtype must be float32, float64, bfloat16 or float16.");
  }
}

template <class T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// memcpy and memset that accept an empty tensor's null pointer.
inline void copy_bytes(void* to, const void* from, int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));
}

inline void zero_bytes(void* to, int64_t bytes) {
  if (bytes > 0) std::memset(to, 0, static_cast<size_t>(bytes));
}

// parallel_for whose ranges are worth a thread: at least about 20 microseconds of work each, given
// the work of one item in vector operations (multiply-adds, or 16 elements moved).
template <class Function>
void parallel_rows(int64_t items, int64_t work_per_item, const Function& function) {
  constexpr int64_t kWorthwhile = 1 << 17;
  const int64_t grain = std::max<int64_t>(1, kWorthwhile / std::max<int64_t>(1, work_per_item));
  torch::stable::parallel_for(0, items, grain, function);
}

}  // namespace perfconv::cpu
