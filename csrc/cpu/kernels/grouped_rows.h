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

  // value, or zero whatever it is; keep has all bits or none.
  static Vec kept(Vec value, int32_t keep) {
    using Bits = std::conditional_t<sizeof(Acc) == 4, int32_t, int64_t>;
    typedef Bits Mask __attribute__((vector_size(kVectorBytes)));
    return reinterpret_cast<Vec>(reinterpret_cast<Mask>(value) & (Mask{} + Bits{keep}));
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

// kPixels neighbouring pixels from `first` on. kRun taps at a time lie a pixel apart: each input
// value is loaded, and put in order, once for all of them.
template <int kPixels, int kRun, bool kIsDepthwise, class T, class Acc>
[[gnu::always_inline]] inline void row_tile(const LaneBlocks<Acc>& blocks,
                                            const LaneRow<T, Acc>& row, int64_t first) {
  using Vector = Lanes<Acc>;
  using Vec = typename Vector::Vec;
  const int64_t block_count = blocks.count;
  const int64_t steps = kIsDepthwise ? 1 : blocks.steps;
  const int64_t in_step = row.in_step;
  const int64_t out_step = row.out_step;
  const int64_t tap_count = row.tap_count;
  const Acc* weights = blocks.weight;
  const int32_t* order = blocks.order;
  for (int64_t b = 0; b < block_count; ++b, weights += blocks.block_weights) {
    const T* in = row.in + first * in_step + blocks.in_first[b];
    Vec sum[kPixels];
#pragma GCC unroll 16
    for (int m = 0; m < kPixels; ++m) sum[m] = Vec{};
    for (int64_t t = 0; t < tap_count; t += kRun) {
      for (int64_t j = 0; j < steps; ++j) {
        Vec scale[kRun];
#pragma GCC unroll 4
        for (int k = 0; k < kRun; ++k) {
          scale[k] = Vector::load(weights + row.taps[t + k].weight + j * Vector::kCount);
        }
        const T* from = in + row.taps[t].offset;
#pragma GCC unroll 16
        for (int i = 0; i < kPixels + kRun - 1; ++i, from += in_step) {
          Vec value = Vector::load(from);
          if constexpr (!kIsDepthwise) value = Vector::permuted(value, order + j * Vector::kCount);
#pragma GCC unroll 4
          for (int k = 0; k < kRun; ++k) {
            if (i - k >= 0 && i - k < kPixels) sum[i - k] += value * scale[k];
          }
        }
      }
    }
    if constexpr (!kIsDepthwise) order += steps * Vector::kCount;
    const int64_t channel = blocks.out_first[b];
    const Vec bias = row.bias != nullptr ? Vector::load(row.bias + channel) : Vec{};
    T* to = row.out + first * out_step + channel;
    if (row.keep == nullptr) {
#pragma GCC unroll 16
      for (int m = 0; m < kPixels; ++m) Vector::store(to + m * out_step, sum[m] + bias);
    } else {
#pragma GCC unroll 16
      for (int m = 0; m < kPixels; ++m) {
        Vector::store(to + m * out_step, Vector::kept(sum[m] + bias, row.keep[first + m]));
      }
    }
  }
}

template <int kRun, bool kIsDepthwise, class T, class Acc>
void row_tiles(const LaneBlocks<Acc>& blocks, const LaneRow<T, Acc>& row) {
  int64_t m = 0;
  auto run = [&]<int kPixels>() {
    for (; m + kPixels <= row.count; m += kPixels) {
      row_tile<kPixels, kRun, kIsDepthwise>(blocks, row, m);
    }
  };
  run.template operator()<8>();
  run.template operator()<2>();
  run.template operator()<1>();
}

// Whether every three taps lie a pixel apart: those of a kernel row of three.
template <class T, class Acc>
bool has_runs_of_three(const LaneRow<T, Acc>& row) {
  for (int64_t t = 0; t < row.tap_count; ++t) {
    if (row.taps[t].offset != row.taps[t - t % 3].offset + t % 3 * row.in_step) return false;
  }
  return row.tap_count % 3 == 0;
}

template <class T, class Acc>
void grouped_row(const LaneBlocks<Acc>& blocks, const LaneRow<T, Acc>& row) {
  if (has_runs_of_three(row)) {
    blocks.order == nullptr ? row_tiles<3, true>(blocks, row) : row_tiles<3, false>(blocks, row);
  } else {
    blocks.order == nullptr ? row_tiles<1, true>(blocks, row) : row_tiles<1, false>(blocks, row);
  }
}

// kTaps taps from `first` on, of kBlocks neighbouring blocks of channels and one step: the sums
// stay in registers. Those of the next block are block_sums further.
template <int kTaps, int kBlocks, bool kIsDepthwise, class T, class Acc>
[[gnu::always_inline]] inline void products_tile(const LaneProducts<T>& pixels, int64_t in_channel,
                                                 int64_t out_channel, const int32_t* order,
                                                 int64_t first, const int64_t* sum_of,
                                                 int64_t block_sums, Acc* sums) {
  using Vector = Lanes<Acc>;
  using Vec = typename Vector::Vec;
  Vec sum[kTaps][kBlocks];
  const T* tap[kTaps];
#pragma GCC unroll 16
  for (int t = 0; t < kTaps; ++t) {
    tap[t] = pixels.in + pixels.taps[first + t] + in_channel;
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) {
      sum[t][b] = Vector::load(sums + sum_of[first + t] * Vector::kCount + b * block_sums);
    }
  }
  const T* grads = pixels.grad + out_channel;
  for (int64_t m = 0; m < pixels.count; ++m) {
    const int64_t read = pixels.reads[m];
    Vec grad[kBlocks];
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) {
      grad[b] = Vector::load(grads + pixels.grads[m] + b * Vector::kCount);
    }
#pragma GCC unroll 16
    for (int t = 0; t < kTaps; ++t) {
#pragma GCC unroll 4
      for (int b = 0; b < kBlocks; ++b) {
        Vec value = Vector::load(tap[t] + read + b * Vector::kCount);
        if constexpr (!kIsDepthwise) value = Vector::permuted(value, order);
        sum[t][b] += value * grad[b];
      }
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < kTaps; ++t) {
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) {
      Vector::store(sums + sum_of[first + t] * Vector::kCount + b * block_sums, sum[t][b]);
    }
  }
}

template <int kBlocks, bool kIsDepthwise, class T, class Acc>
void products_of_blocks(const LaneProducts<T>& pixels, int64_t in_channel, int64_t out_channel,
                        const int32_t* order, const int64_t* sum_of, int64_t block_sums,
                        Acc* sums) {
  int64_t t = 0;
  auto run = [&]<int kTaps>() {
    for (; t + kTaps <= pixels.tap_count; t += kTaps) {
      products_tile<kTaps, kBlocks, kIsDepthwise>(pixels, in_channel, out_channel, order, t, sum_of,
                                                  block_sums, sums);
    }
  };
  if constexpr (kBlocks == 1) run.template operator()<9>();
  run.template operator()<3>();
  run.template operator()<1>();
}

// Depthwise layers take four blocks at once: whole lines of the input, as they lie.
template <bool kIsDepthwise, class T, class Acc>
void products_of(const LaneBlocks<Acc>& blocks, const LaneProducts<T>& pixels,
                 const int64_t* sum_of, int64_t sum_taps, Acc* sums) {
  constexpr int64_t kCount = Lanes<Acc>::kCount;
  const int64_t step_sums = sum_taps * kCount;
  const int32_t* order = blocks.order;
  for (int64_t b = 0; b < blocks.count;) {
    const int64_t in = blocks.in_first[b];
    const int64_t out = blocks.out_first[b];
    if (kIsDepthwise && b + 4 <= blocks.count && blocks.in_first[b + 3] == in + 3 * kCount) {
      products_of_blocks<4, true>(pixels, in, out, order, sum_of, step_sums, sums);
      sums += 4 * step_sums;
      b += 4;
      continue;
    }
    for (int64_t step = 0; step < blocks.steps; ++step) {
      products_of_blocks<1, kIsDepthwise>(pixels, in, out, order, sum_of, step_sums, sums);
      sums += step_sums;
      if constexpr (!kIsDepthwise) order += kCount;
    }
    ++b;
  }
}

template <class T, class Acc>
void grouped_products(const LaneBlocks<Acc>& blocks, const LaneProducts<T>& pixels,
                      const int64_t* sum_of, int64_t sum_taps, Acc* sums) {
  blocks.order == nullptr ? products_of<true>(blocks, pixels, sum_of, sum_taps, sums)
                          : products_of<false>(blocks, pixels, sum_of, sum_taps, sums);
}

}  // namespace
}  // namespace perfconv::cpu
