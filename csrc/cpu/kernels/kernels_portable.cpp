// Kernels for any processor, in the compiler's own 16-byte vectors (SSE2, NEON, ...).
#include "cpu/kernels/gemm_tile.h"
#include "cpu/kernels/row_loops.h"

namespace perfconv::cpu {
namespace {

template <class Scalar>
struct PortableVector {
  using Element = Scalar;
  using Sum = Scalar;
  typedef Scalar Vec __attribute__((vector_size(16)));
  using PanelVec = Vec;
  static constexpr int kLanes = 16 / sizeof(Scalar);
  static constexpr int kDepthStep = 1;
  static Vec zero() { return Vec{}; }
  static Vec load(const Scalar* from) {
    Vec value;
    __builtin_memcpy(&value, from, sizeof(value));
    return value;
  }
  static Vec broadcast(const Scalar* from) { return Vec{} + *from; }
  static Vec load_sum(const Scalar* from) { return load(from); }
  static void store_sum(Scalar* to, Vec value) { __builtin_memcpy(to, &value, sizeof(value)); }
  static Vec multiply_add(Vec a, Vec b, Vec c) { return a * b + c; }
};

}  // namespace

KernelTable make_portable_table() {
  KernelTable table;
  table.name = "portable";
  table.gemm_float[0] = make_gemm_kernel<PortableVector<float>, 6, 2>();
  table.gemm_float[1] = make_gemm_kernel<PortableVector<float>, 6, 1>();
  table.gemm_double[0] = make_gemm_kernel<PortableVector<double>, 6, 2>();
  table.gemm_double[1] = make_gemm_kernel<PortableVector<double>, 6, 1>();
  set_row_kernels(table);
  return table;
}

}  // namespace perfconv::cpu
