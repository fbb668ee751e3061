// Small kernels that the tests of the emulator launch by name: each .cu lists its own.
#pragma once

#include <cuda_runtime.h>

struct Arguments {
  void* pointer[8];
  int number[8];
  cudaStream_t stream;

  template <class T>
  T* at(int place) const {
    return static_cast<T*>(pointer[place]);
  }
};

struct Feature {
  const char* name;
  cudaError_t (*run)(const Arguments&);
};

// Enters a list of features; from static objects.
struct Features {
  template <int kCount>
  explicit Features(const Feature (&list)[kCount]) : Features(list, kCount) {}
  Features(const Feature* list, int count);
};
