// Vector types of AVX-512 for gemm_tile.h, shared by the files with and without bfloat16 dot
// products. Included only by files compiled for AVX-512.
#pragma once

#include <immintrin.h>

#include "core/element.h"

namespace perfconv::cpu {
namespace {

struct Avx512Float {
  using Element = float;
  using Sum = float;
  using Vec = __m512;
  using PanelVec = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kDepthStep = 1;
  static Vec zero() { return _mm512_setzero_ps(); }
  static PanelVec load(const float* from) { return _mm512_loadu_ps(from); }
  static PanelVec broadcast(const float* from) { return _mm512_set1_ps(*from); }
  static Vec load_sum(const float* from) { return _mm512_loadu_ps(from); }
  static void store_sum(float* to, Vec value) { _mm512_storeu_ps(to, value); }
  static Vec multiply_add(PanelVec a, PanelVec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
};

// Eight columns at two neighbouring depths at once, as a dot product would: half the broadcasts of
// a tile that would fill half of every vector (KERNELS.md K-067). Panels are [depth / 2][8][2].
struct Avx512FloatPairs {
  using Element = float;
  using Sum = float;
  using Vec = __m512;
  using PanelVec = __m512;
  static constexpr int kLanes = 8;
  static constexpr int kDepthStep = 2;
  static Vec zero() { return _mm512_setzero_ps(); }
  static PanelVec load(const float* from) { return _mm512_loadu_ps(from); }
  static PanelVec broadcast(const float* from) {
    double pair;
    __builtin_memcpy(&pair, from, sizeof(pair));
    return _mm512_castpd_ps(_mm512_set1_pd(pair));
  }
  static void store_sum(float* to, Vec value) {
    const __m512 both = _mm512_add_ps(value, _mm512_movehdup_ps(value));
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm256_storeu_ps(to, _mm512_castps512_ps256(_mm512_permutexvar_ps(even, both)));
  }
  static Vec multiply_add(PanelVec a, PanelVec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
};

struct Avx512Double {
  using Element = double;
  using Sum = double;
  using Vec = __m512d;
  using PanelVec = __m512d;
  static constexpr int kLanes = 8;
  static constexpr int kDepthStep = 1;
  static Vec zero() { return _mm512_setzero_pd(); }
  static PanelVec load(const double* from) { return _mm512_loadu_pd(from); }
  static PanelVec broadcast(const double* from) { return _mm512_set1_pd(*from); }
  static Vec load_sum(const double* from) { return _mm512_loadu_pd(from); }
  static void store_sum(double* to, Vec value) { _mm512_storeu_pd(to, value); }
  static Vec multiply_add(PanelVec a, PanelVec b, Vec c) { return _mm512_fmadd_pd(a, b, c); }
};

// 16 x 16 floats transposed in registers, in four rounds of 2-way shuffles.
inline void transpose_block(__m512 (&row)[16]) {
  __m512 next[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    next[2 * i] = _mm512_unpacklo_ps(row[2 * i], row[2 * i + 1]);
    next[2 * i + 1] = _mm512_unpackhi_ps(row[2 * i], row[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const __m512d low = _mm512_castps_pd(next[4 * i + j]);
      const __m512d high = _mm512_castps_pd(next[4 * i + j + 2]);
      row[4 * i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      row[4 * i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      next[8 * i + j] = _mm512_shuffle_f32x4(row[8 * i + j], row[8 * i + j + 4], 0x88);
      next[8 * i + j + 4] = _mm512_shuffle_f32x4(row[8 * i + j], row[8 * i + j + 4], 0xdd);
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) {
    row[j] = _mm512_shuffle_f32x4(next[j], next[j + 8], 0x88);
    row[j + 8] = _mm512_shuffle_f32x4(next[j], next[j + 8], 0xdd);
  }
}

inline void transpose_avx512(const float* const* from_rows, int64_t rows, float* const* to_rows,
                             int64_t columns) {
  auto mask_of = [](int64_t left) {
    return static_cast<__mmask16>(left >= 16 ? 0xffffu : (1u << left) - 1u);
  };
  for (int64_t k0 = 0; k0 < columns; k0 += 16) {
    const __mmask16 column_mask = mask_of(columns - k0);
    for (int64_t n0 = 0; n0 < rows; n0 += 16) {
      const __mmask16 row_mask = mask_of(rows - n0);
      __m512 block[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        block[i] = n0 + i < rows ? _mm512_maskz_loadu_ps(column_mask, from_rows[n0 + i] + k0)
                                 : _mm512_setzero_ps();
      }
      transpose_block(block);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        if (k0 + i >= columns) continue;
        if (rows - n0 >= 16) {
          _mm512_storeu_ps(to_rows[k0 + i] + n0, block[i]);  // masked stores are slow
        } else {
          _mm512_mask_storeu_ps(to_rows[k0 + i] + n0, row_mask, block[i]);
        }
      }
    }
  }
}

// 16 positions at a time; what is stored past the active ones is overwritten by the next.
inline int64_t compact_avx512(const uint8_t* mask, int64_t length, int32_t offset, int32_t* to) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  int64_t count = 0;
  for (int64_t i = 0; i < length; i += 64) {
    const __mmask64 inside = length - i >= 64 ? ~0ull : (1ull << (length - i)) - 1ull;
    const __m512i bytes = _mm512_maskz_loadu_epi8(inside, mask + i);
    uint64_t active = _mm512_test_epi8_mask(bytes, bytes);
    for (int64_t j = i; active != 0; j += 16, active >>= 16) {
      const auto some = static_cast<__mmask16>(active);
      const __m512i first = _mm512_set1_epi32(offset + static_cast<int32_t>(j));
      _mm512_storeu_si512(to + count,
                          _mm512_maskz_compress_epi32(some, _mm512_add_epi32(first, lanes)));
      count += __builtin_popcount(some);
    }
  }
  return count;
}

}  // namespace
}  // namespace perfconv::cpu
