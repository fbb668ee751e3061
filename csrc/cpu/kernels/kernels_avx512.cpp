// Kernels for AVX-512 without bfloat16 dot products (bfloat16 is computed in float).
#include "cpu/kernels/gemm_tile.h"
#include "cpu/kernels/row_loops.h"
#include "cpu/kernels/vectors_avx512.h"

namespace perfconv::cpu {

// 12 x 32 floats: 24 of the 32 registers hold sums, 2 the panel, 1 the broadcast.
KernelTable make_avx512_table() {
  KernelTable table;
  table.name = "avx512";
  table.gemm_float[0] = make_gemm_kernel<Avx512Float, 12, 2>();
  table.gemm_float[1] = make_gemm_kernel<Avx512Float, 12, 1>();
  table.gemm_float[kNarrowest] = make_forward_kernel<Avx512FloatPairs, 12, 1>();
  table.gemm_double[0] = make_gemm_kernel<Avx512Double, 12, 2>();
  table.gemm_double[1] = make_gemm_kernel<Avx512Double, 12, 1>();
  set_row_kernels(table);
  table.transpose = &transpose_avx512;
  table.compact = &compact_avx512;
  return table;
}

}  // namespace perfconv::cpu
