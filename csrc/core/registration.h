// Where operators are registered. The library compiles as it stands; the tests compile the CUDA
// operators a second time, under another namespace, to run their kernels on an emulator.
#pragma once

#include <torch/csrc/stable/library.h>

#ifndef PERFCONV_NAMESPACE
#define PERFCONV_NAMESPACE perfconv
#endif
#ifndef PERFCONV_CUDA_KEY
#define PERFCONV_CUDA_KEY CUDA
#endif

// One more step of expansion: the macros of torch paste their arguments as they are written.
#define PERFCONV_EXPAND_LIBRARY(name, m) STABLE_TORCH_LIBRARY(name, m)
#define PERFCONV_EXPAND_IMPL(name, key, m) STABLE_TORCH_LIBRARY_IMPL(name, key, m)

#define PERFCONV_LIBRARY(m) PERFCONV_EXPAND_LIBRARY(PERFCONV_NAMESPACE, m)
#define PERFCONV_CUDA_IMPL(m) PERFCONV_EXPAND_IMPL(PERFCONV_NAMESPACE, PERFCONV_CUDA_KEY, m)
