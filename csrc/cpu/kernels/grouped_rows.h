// Sums of depthwise and other grouped convolutions with few channels a group: a vector holds
// neighbouring output channels of one pixel, so that neither a GEMM nor a copy is needed.
// Everything is in an unnamed namespace: two instruction sets must never share one instance.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "cpu/kernels/epilogue.h"

namespace perfconv::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// The widest vector of sums that this file is compiled for.
template <class Acc>
struct Lanes {
  static constexpr int kCount = kVectorBytes / static_cast<int>(sizeof(Acc));
  typedef Acc Vec __attribute__((vector_size(kVectorBytes)));

  template <class T>
  static Vec load(const T* from) {
    Vec value;
    if constexpr (std::is_same_v<T, Acc>) {
      __builtin_memcpy(&value, from, sizeof(value));
    } else if constexpr (std::is_same_v<T, BFloat16>) {
      typedef uint16_t Narrow __attribute__((vector_size(kVectorBytes / 2)));
      typedef uint32_t Wide __attribute__((vector_size(kVectorBytes)));
      Narrow bits;
      __builtin_memcpy(&bits, from, sizeof(bits));
      value = reinterpret_cast<Vec>(__builtin_convertvector(bits, Wide) << 16);
    } else {
      Acc wide[kCount];
      for (int i = 0; i < kCount; ++i) wide[i] = Acc(to_float(from[i]));
      __builtin_memcpy(&value, wide, sizeof(value));
    }
    return value;
  }

  // Rounded as from_float does.
  template <class T>
  static void store(T* to, Vec value) {
    if constexpr (std::is_same_v<T, Acc>) {
      __builtin_memcpy(to, &value, sizeof(value));
    } else if constexpr (std::is_same_v<T, BFloat16>) {
      typedef uint16_t Narrow __attribute__((vector_size(kVectorBytes / 2)));
      typedef uint32_t Wide __attribute__((vector_size(kVectorBytes)));
      const Wide bits = reinterpret_cast<Wide>(value);
      const Wide rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
      const Wide is_nan = reinterpret_cast<Wide>((bits & 0x7fffffffu) > 0x7f800000u);
      const Wide result = (((bits >> 16) | 0x7fc0u) & is_nan) | (rounded & ~is_nan);
      const Narrow narrow = __builtin_convertvector(result, Narrow);
      __builtin_memcpy(to, &narrow, sizeof(narrow));
    } else {
      for (int i = 0; i < kCount; ++i) to[i] = from_float<T>(value[i]);
    }
  }

  // value[order[i]]
  static Vec permuted(Vec value, const int32_t* order) {
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<Acc, float>) {
      return _mm512_permutexvar_ps(_mm512_loadu_si512(order), value);
    }
#elif defined(__AVX2__)
    if constexpr (std::is_same_v<Acc, float>) {
      return _mm256_permutevar8x32_ps(value,
                                      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(order)));
    }
#endif
    Vec result;
    for (int i = 0; i < kCount; ++i) result[i] = value[order[i]];
    return result;
  }
};

// finish_rows for one vector of each pixel, without its first `skip` lanes.
template <class T, class Acc>
[[gnu::noinline]] void finish_lanes(const Acc* sums, int64_t skip, int64_t count, const Acc* bias,
                                    const T* const* residual, Activation activation,
                                    T* const* out) {
  constexpr int kCount = Lanes<Acc>::kCount;
  if (skip == 0) {
    finish_rows<T, Acc>(sums, kCount, count, bias, residual, activation, out, kCount);
  } else {
    finish_rows<T, Acc>(sums, kCount, count, bias, residual, activation, out, kCount - skip);
  }
}

// kPixels pixels from `first` on; the weights are read once for all of them.
template <int kPixels, bool kIsDepthwise, class T, class Acc>
[[gnu::always_inline]] inline void grouped_tile(const LaneBlocks<Acc>& blocks,
                                                const LanePixels<T, Acc>& pixels, int64_t first,
                                                bool is_plain) {
  using Vector = Lanes<Acc>;
  using Vec = typename Vector::Vec;
  const int64_t block_count = blocks.count;
  const int64_t steps = kIsDepthwise ? 1 : blocks.steps;
  const Acc* weights = blocks.weight;
  const int32_t* order = blocks.order;
  const LaneTap* taps = pixels.taps;
  const int64_t tap_count = pixels.tap_count;
  const int64_t* reads = pixels.reads + first;
  const int64_t* writes = pixels.writes + first;
  for (int64_t b = 0; b < block_count; ++b, weights += blocks.block_weights) {
    const T* from[kPixels];
    Vec sum[kPixels];
#pragma GCC unroll 8
    for (int m = 0; m < kPixels; ++m) {
      from[m] = pixels.in + (reads[m] + blocks.in_first[b]);
      sum[m] = Vec{};
    }
    for (int64_t t = 0; t < tap_count; ++t) {
      const Acc* weight = weights + taps[t].weight;
      const int64_t offset = taps[t].offset;
      if constexpr (kIsDepthwise) {
        const Vec scale = Vector::load(weight);
#pragma GCC unroll 8
        for (int m = 0; m < kPixels; ++m) sum[m] += Vector::load(from[m] + offset) * scale;
      } else {
        Vec value[kPixels];
#pragma GCC unroll 8
        for (int m = 0; m < kPixels; ++m) value[m] = Vector::load(from[m] + offset);
        for (int64_t j = 0; j < steps; ++j) {
          const Vec scale = Vector::load(weight + j * Vector::kCount);
#pragma GCC unroll 8
          for (int m = 0; m < kPixels; ++m) {
            sum[m] += Vector::permuted(value[m], order + j * Vector::kCount) * scale;
          }
        }
      }
    }
    if constexpr (!kIsDepthwise) order += steps * Vector::kCount;
    const int64_t channel = blocks.out_first[b];
    T* to = pixels.out + channel;
    if (is_plain) {  // beside the sums of the next block, so that nothing waits for stores
      const Vec bias = Vector::load(pixels.bias + channel);
#pragma GCC unroll 8
      for (int m = 0; m < kPixels; ++m) Vector::store(to + writes[m], sum[m] + bias);
      continue;
    }
    // What overlaps is finished once: the residual may be the output itself.
    const int64_t skip =
        b == 0 ? 0 : blocks.out_first[b - 1] + Vector::kCount - blocks.out_first[b];
    alignas(64) Acc sums[kPixels * Vector::kCount];
    T* out[kPixels];
    const T* residual[kPixels];
#pragma GCC unroll 8
    for (int m = 0; m < kPixels; ++m) {
      Vector::store(sums + m * Vector::kCount, sum[m]);
      out[m] = to + writes[m] + skip;
      if (pixels.residual != nullptr) residual[m] = pixels.residual + (writes[m] + channel + skip);
    }
    finish_lanes<T, Acc>(sums + skip, skip, kPixels, pixels.bias + channel + skip,
                         pixels.residual != nullptr ? residual : nullptr, pixels.activation, out);
  }
}

template <bool kIsDepthwise, class T, class Acc>
void grouped_pixels(const LaneBlocks<Acc>& blocks, const LanePixels<T, Acc>& pixels) {
  const bool is_plain = pixels.residual == nullptr && pixels.activation == Activation::kNone;
  int64_t m = 0;
  auto run = [&]<int kPixels>() {
    for (; m + kPixels <= pixels.count; m += kPixels) {
      grouped_tile<kPixels, kIsDepthwise>(blocks, pixels, m, is_plain);
    }
  };
  run.template operator()<8>();
  run.template operator()<3>();
  run.template operator()<1>();
}

template <class T, class Acc>
void grouped_rows(const LaneBlocks<Acc>& blocks, const LanePixels<T, Acc>& pixels) {
  blocks.order == nullptr ? grouped_pixels<true>(blocks, pixels)
                          : grouped_pixels<false>(blocks, pixels);
}

}  // namespace
}  // namespace perfconv::cpu
