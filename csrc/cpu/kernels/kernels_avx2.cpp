// Kernels for AVX2 with fused multiply-add: 6 x 16 floats use 12 of the 16 registers for sums.
#include <immintrin.h>

#include "cpu/kernels/gemm_tile.h"
#include "cpu/kernels/row_loops.h"

namespace perfconv::cpu {
namespace {

struct Avx2Float {
  using Element = float;
  using Sum = float;
  using Vec = __m256;
  using PanelVec = __m256;
  static constexpr int kLanes = 8;
  static constexpr int kDepthStep = 1;
  static Vec zero() { return _mm256_setzero_ps(); }
  static PanelVec load(const float* from) { return _mm256_loadu_ps(from); }
  static PanelVec broadcast(const float* from) { return _mm256_broadcast_ss(from); }
  static Vec load_sum(const float* from) { return _mm256_loadu_ps(from); }
  static void store_sum(float* to, Vec value) { _mm256_storeu_ps(to, value); }
  static Vec multiply_add(PanelVec a, PanelVec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
};

struct Avx2Double {
  using Element = double;
  using Sum = double;
  using Vec = __m256d;
  using PanelVec = __m256d;
  static constexpr int kLanes = 4;
  static constexpr int kDepthStep = 1;
  static Vec zero() { return _mm256_setzero_pd(); }
  static PanelVec load(const double* from) { return _mm256_loadu_pd(from); }
  static PanelVec broadcast(const double* from) { return _mm256_broadcast_sd(from); }
  static Vec load_sum(const double* from) { return _mm256_loadu_pd(from); }
  static void store_sum(double* to, Vec value) { _mm256_storeu_pd(to, value); }
  static Vec multiply_add(PanelVec a, PanelVec b, Vec c) { return _mm256_fmadd_pd(a, b, c); }
};

}  // namespace

KernelTable make_avx2_table() {
  KernelTable table;
  table.name = "avx2";
  table.gemm_float[0] = make_gemm_kernel<Avx2Float, 6, 2>();
  table.gemm_float[1] = make_gemm_kernel<Avx2Float, 6, 1>();
  table.gemm_double[0] = make_gemm_kernel<Avx2Double, 6, 2>();
  table.gemm_double[1] = make_gemm_kernel<Avx2Double, 6, 1>();
  set_row_kernels(table);
  return table;
}

}  // namespace perfconv::cpu
