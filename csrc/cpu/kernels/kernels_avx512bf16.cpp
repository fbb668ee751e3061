// AVX-512 with bfloat16 dot products: two neighbouring depths per instruction, summed in float. The
// rest is that of kernels_avx512.cpp.
#include "cpu/kernels/gemm_tile.h"
#include "cpu/kernels/row_loops.h"
#include "cpu/kernels/vectors_avx512.h"

namespace perfconv::cpu {
namespace {

struct Avx512BFloat16 {
  using Element = BFloat16;
  using Sum = float;
  using Vec = __m512;
  using PanelVec = __m512bh;
  static constexpr int kLanes = 16;
  static constexpr int kDepthStep = 2;
  static Vec zero() { return _mm512_setzero_ps(); }
  static PanelVec load(const BFloat16* from) {
    return reinterpret_cast<__m512bh>(_mm512_loadu_si512(from));
  }
  static PanelVec broadcast(const BFloat16* from) {
    int pair;
    __builtin_memcpy(&pair, from, sizeof(pair));
    return reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
  }
  static Vec load_sum(const float* from) { return _mm512_loadu_ps(from); }
  static void store_sum(float* to, Vec value) { _mm512_storeu_ps(to, value); }
  static Vec multiply_add(PanelVec a, PanelVec b, Vec c) { return _mm512_dpbf16_ps(c, a, b); }
};

// The compiler's own version of this loop costs as much as the multiplications it feeds.
void interleave_avx512(const BFloat16* first, const BFloat16* second, BFloat16* to,
                       int64_t channels) {
  alignas(64) static constexpr uint16_t kLow[32] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,
                                                    37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
                                                    11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i low = _mm512_load_si512(kLow);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  int64_t c = 0;
  for (; c + 32 <= channels; c += 32) {  // masked stores are slow: only the rest needs them
    const __m512i a = _mm512_loadu_si512(first + c);
    const __m512i b = _mm512_loadu_si512(second + c);
    _mm512_storeu_si512(to + 2 * c, _mm512_permutex2var_epi16(a, low, b));
    _mm512_storeu_si512(to + 2 * c + 32, _mm512_permutex2var_epi16(a, high, b));
  }
  if (c < channels) {
    const int64_t left = channels - c;
    const __mmask32 mask = left >= 32 ? ~0u : (1u << left) - 1u;
    const __m512i a = _mm512_maskz_loadu_epi16(mask, first + c);
    const __m512i b = _mm512_maskz_loadu_epi16(mask, second + c);
    const __mmask32 low_mask = left >= 16 ? ~0u : (1u << (2 * left)) - 1u;
    const int64_t rest = left - 16;
    const __mmask32 high_mask = rest >= 16 ? ~0u : rest > 0 ? (1u << (2 * rest)) - 1u : 0u;
    _mm512_mask_storeu_epi16(to + 2 * c, low_mask, _mm512_permutex2var_epi16(a, low, b));
    _mm512_mask_storeu_epi16(to + 2 * c + 32, high_mask, _mm512_permutex2var_epi16(a, high, b));
  }
}

// One permutation for each pair of channels: 2 * taps elements in, as many out. The stores run past
// their end; the next one, or the caller's spare room, takes what they write there.
void pair_channels_avx512(const BFloat16* from, int64_t channels, int64_t taps, BFloat16* to) {
  if (taps > 16) return pair_channels(from, channels, taps, to);
  alignas(64) uint16_t order[32] = {};
  for (int64_t t = 0; t < taps; ++t) {
    order[2 * t] = static_cast<uint16_t>(t);
    order[2 * t + 1] = static_cast<uint16_t>(taps + t);
  }
  const __m512i index = _mm512_load_si512(order);
  for (int64_t c = 0; c < channels; c += 2) {
    const __m512i pair = _mm512_loadu_si512(from + c * taps);
    _mm512_storeu_si512(to + c * taps, _mm512_permutexvar_epi16(index, pair));
  }
}

// Rounds to nearest even in one instruction (values below 2^-126 become zero, as in the products).
void narrow_avx512(const float* in, BFloat16* out, int64_t channels) {
  int64_t c = 0;
  for (; c + 32 <= channels; c += 32) {
    const __m512 low = _mm512_loadu_ps(in + c);
    const __m512 high = _mm512_loadu_ps(in + c + 16);
    _mm512_storeu_si512(out + c, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
  }
  narrow_row<BFloat16, float>(in + c, out + c, channels - c);
}

}  // namespace

KernelTable make_avx512bf16_table() {
  KernelTable table = make_avx512_table();
  table.name = "avx512_bf16";
  table.gemm_bfloat16[0] = make_gemm_kernel<Avx512BFloat16, 12, 2>();
  table.gemm_bfloat16[1] = make_gemm_kernel<Avx512BFloat16, 12, 1>();
  table.row_bfloat16.narrow = &narrow_avx512;
  table.row_bfloat16.interleave = &interleave_avx512;
  table.row_bfloat16.pair_channels = &pair_channels_avx512;
  return table;
}

}  // namespace perfconv::cpu
