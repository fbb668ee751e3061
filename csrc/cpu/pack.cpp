// Weight packing. A pack is checked against the weight before it is used (sampled values), so one
// that a later change of the weight has made stale is replaced, whatever made the change.
#include "cpu/pack.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "cpu/images.h"
#include "cpu/row_pointers.h"

namespace perfconv::cpu {
namespace {

// Whether panels are of 4-byte words, so that rows of them can be transposed into a panel.
template <class A>
bool has_words(const GemmPlan& plan) {
  return sizeof(A) * plan.depth_step == sizeof(float);
}

constexpr int64_t kSmallDepth = 16;  // below it a tap is too short to be worth a row pointer

template <class A, class T>
A convert(T value) {
  return from_float<A>(to_float(value));
}

// Where depth k and column n of a panel stand.
inline int64_t panel_offset(int64_t k, int64_t n, int64_t tile_cols, int64_t depth_step) {
  return k / depth_step * tile_cols * depth_step + n * depth_step + k % depth_step;
}

// A panel of 4-byte words [depth / depth_step][tile_cols]: a word is a float, or two interleaved
// bfloat16 (which are only ever packed from bfloat16). Weight rows are first laid out as rows of
// words, then transposed in registers, so that tile_cols words of a panel row are written at once.
template <class A>
float* words(A* panel) {
  return reinterpret_cast<float*>(panel);
}

// One forward panel, element by element: where words are not of 4 bytes, or hold odd depths.
template <class A, class T>
void pack_forward_simply(const T* weight, int64_t first, int64_t columns, int64_t channels,
                         int64_t taps, const GemmPlan& plan, A* panel) {
  std::fill_n(panel, plan.panel_elements(), A{});
  for (int64_t n = 0; n < columns; ++n) {
    for (int64_t k = 0; k < channels * taps; ++k) {
      panel[panel_offset(k % taps * channels + k / taps, n, plan.tile_cols, plan.depth_step)] =
          convert<A>(weight[(first + n) * channels * taps + k]);
    }
  }
}

// One forward panel: output channels [first, first + columns) of a weight (C_out, C, taps). In
// blocks of channels: the rows lie a power of two apart and would fight for the cache.
template <class A, class T>
void pack_forward_panel(const T* weight, int64_t first, int64_t columns, int64_t channels,
                        int64_t taps, const GemmPlan& plan, A* panel) {
  const int64_t step = plan.depth_step;
  if (!has_words<A>(plan) || channels % step != 0) {
    return pack_forward_simply(weight, first, columns, channels, taps, plan, panel);
  }
  if (columns < plan.tile_cols) std::fill_n(panel, plan.panel_elements(), A{});
  constexpr int64_t kBlockChannels = 16;
  const int64_t block = kBlockChannels / step * taps;  // words of a row
  constexpr int64_t kSpare = 16;  // words that pair_channels may read or write past the end
  std::vector<float> rows(static_cast<size_t>(columns * block + kSpare));
  std::vector<T> line(static_cast<size_t>(kBlockChannels * taps + 2 * kSpare));
  std::vector<const float*> from(static_cast<size_t>(columns));
  std::vector<float*> to(static_cast<size_t>(block));
  for (int64_t n = 0; n < columns; ++n) from[n] = rows.data() + n * block;
  for (int64_t c0 = 0; c0 < channels; c0 += kBlockChannels) {
    const int64_t count = std::min(kBlockChannels, channels - c0);
    for (int64_t n = 0; n < columns; ++n) {
      const T* row = weight + ((first + n) * channels + c0) * taps;
      if constexpr (std::is_same_v<A, float>) {
        convert_row(row, rows.data() + n * block, count * taps);
      } else if constexpr (std::is_same_v<A, T>) {
        std::copy_n(row, count * taps, line.data());
        row_kernel<A>(kernels()).pair_channels(line.data(), count, taps,
                                               reinterpret_cast<A*>(rows.data() + n * block));
      }
    }
    for (int64_t k = 0; k < count / step * taps; ++k) {
      to[k] = words(panel) + (k % taps * channels + c0 + k / taps * step) / step * plan.tile_cols;
    }
    kernels().transpose(from.data(), columns, to.data(), count / step * taps);
  }
}

// The same panel of a weight (C_out, taps, C), channels_last in memory: a tap of an output channel
// is a row of words already, for bfloat16 too.
template <class A, class T>
void pack_forward_rows(const T* weight, int64_t first, int64_t columns, int64_t channels,
                       int64_t taps, const GemmPlan& plan, A* panel) {
  const int64_t step = plan.depth_step;
  if (columns < plan.tile_cols || taps * channels < plan.depth) {
    std::fill_n(panel, plan.panel_elements(), A{});
  }
  auto row = [&](int64_t n, int64_t t) { return weight + ((first + n) * taps + t) * channels; };
  if (!has_words<A>(plan) || channels % step != 0) {
    for (int64_t n = 0; n < columns; ++n) {
      for (int64_t k = 0; k < taps * channels; ++k) {
        panel[panel_offset(k, n, plan.tile_cols, step)] = convert<A>(row(n, 0)[k]);
      }
    }
    return;
  }
  constexpr int64_t kBlockWords = 64;  // 256 bytes of each row at a time
  float converted[kMaxTileCols * kBlockWords];
  const float* from[kMaxTileCols];
  float* to[kBlockWords];
  for (int64_t t = 0; t < taps; ++t) {
    for (int64_t c0 = 0; c0 < channels; c0 += kBlockWords * step) {
      const int64_t count = std::min(kBlockWords, (channels - c0) / step);
      for (int64_t n = 0; n < columns; ++n) {
        if constexpr (std::is_same_v<A, T>) {
          from[n] = reinterpret_cast<const float*>(row(n, t) + c0);
        } else if constexpr (std::is_same_v<A, float>) {
          convert_row(row(n, t) + c0, converted + n * kBlockWords, count);
          from[n] = converted + n * kBlockWords;
        }
      }
      for (int64_t k = 0; k < count; ++k) {
        to[k] = words(panel) + ((t * channels + c0) / step + k) * plan.tile_cols;
      }
      kernels().transpose(from, columns, to, count);
    }
  }
}

// The dgrad panels of input channels [first, first + columns): one per tap, depth = output
// channels.
template <class A, class T>
void pack_dgrad_panel(const T* weight, int64_t first, int64_t columns, int64_t channels,
                      int64_t taps, int64_t outputs, const GemmPlan& plan, A* panels) {
  if (columns < plan.tile_cols) std::fill_n(panels, taps * plan.panel_elements(), A{});
  auto row = [&](int64_t k) { return weight + (k * channels + first) * taps; };
  if constexpr (std::is_same_v<A, double>) {
    for (int64_t k = 0; k < outputs; ++k) {
      for (int64_t i = 0; i < columns * taps; ++i) {
        panels[i % taps * plan.panel_elements() + k * plan.tile_cols + i / taps] =
            convert<A>(row(k)[i]);
      }
    }
  } else {
    std::vector<float> line(static_cast<size_t>(plan.tile_cols * taps));
    const std::vector<T> zeros(static_cast<size_t>(columns * taps));
    std::vector<const float*> from(static_cast<size_t>(columns));
    std::vector<float*> to(static_cast<size_t>(taps));
    for (int64_t n = 0; n < columns; ++n) from[n] = line.data() + n * taps;
    for (int64_t k = 0; k < outputs; k += plan.depth_step) {
      if constexpr (std::is_same_v<A, float>) {
        convert_row(row(k), line.data(), columns * taps);
      } else if constexpr (std::is_same_v<A, T>) {
        row_kernel<A>(kernels()).interleave(row(k), k + 1 < outputs ? row(k + 1) : zeros.data(),
                                            reinterpret_cast<A*>(line.data()), columns * taps);
      }
      for (int64_t t = 0; t < taps; ++t) {
        to[t] = words(panels + t * plan.panel_elements()) + k / plan.depth_step * plan.tile_cols;
      }
      kernels().transpose(from.data(), columns, to.data(), taps);
    }
  }
}

// The same panels of a weight (C_out, taps, C), channels_last in memory.
template <class A, class T>
void pack_dgrad_rows(const T* weight, int64_t first, int64_t columns, int64_t channels,
                     int64_t taps, int64_t outputs, const GemmPlan& plan, A* panels) {
  if (columns < plan.tile_cols || outputs < plan.depth) {
    std::fill_n(panels, taps * plan.panel_elements(), A{});
  }
  const std::vector<T> zeros(static_cast<size_t>(columns));
  auto row = [&](int64_t k, int64_t t) { return weight + (k * taps + t) * channels + first; };
  for (int64_t t = 0; t < taps; ++t) {
    A* panel = panels + t * plan.panel_elements();
    for (int64_t k = 0; k < outputs; k += plan.depth_step) {
      A* to = panel + k * plan.tile_cols;
      if constexpr (std::is_same_v<A, BFloat16>) {
        if constexpr (std::is_same_v<T, A>) {
          const T* next = k + 1 < outputs ? row(k + 1, t) : zeros.data();
          row_kernel<A>(kernels()).interleave(row(k, t), next, to, columns);
        }
      } else {
        convert_row(row(k, t), to, columns);
      }
    }
  }
}

template <class Function>
void visit_types(ScalarType storage, const GemmPlan& plan, Function function) {
  visit_dtype("pack_weight", storage, [&]<class T>() {
    visit_compute(plan, [&]<class A>() { function.template operator()<T, A>(); });
  });
}

// Compares 64 places spread over the pack with the weight: a rewritten weight differs nearly
// everywhere, so any change but the edit of single elements behind autograd's back is seen.
bool matches(const Tensor& weight, const Tensor& packed, const GemmPlan& plan, int64_t groups) {
  if (packed.scalar_type() != plan.compute || packed.dim() != 1 || !packed.is_contiguous() ||
      packed.is_cuda() || packed.numel() != plan.elements(groups)) {
    return false;
  }
  const int64_t channels = weight.size(1);
  const int64_t taps = weight.size(2) * weight.size(3);
  const int64_t outputs = weight.size(0) / groups;
  constexpr int64_t kSamples = 64;
  bool is_same = true;
  visit_types(weight.scalar_type(), plan, [&]<class T, class A>() {
    const T* from = data<T>(weight);
    const A* panels = data<A>(packed);
    for (int64_t s = 0; s < kSamples && is_same; ++s) {
      const int64_t flat = s * (weight.numel() - 1) / (kSamples - 1);
      const int64_t tap = flat % taps;
      const int64_t c = flat / taps % channels;
      const int64_t n = flat / (taps * channels);
      const int64_t block = n / outputs * plan.panel_blocks + n % outputs / plan.tile_cols;
      const int64_t place = n * weight.stride(0) + c * weight.stride(1) +
                            tap / weight.size(3) * weight.stride(2) +
                            tap % weight.size(3) * weight.stride(3);
      const A expected = convert<A>(from[place]);
      const A found = panels[block * plan.panel_elements() +
                             panel_offset(tap * channels + c, n % outputs % plan.tile_cols,
                                          plan.tile_cols, plan.depth_step)];
      is_same = __builtin_memcmp(&expected, &found, sizeof(A)) == 0;
    }
  });
  return is_same;
}

GemmPlan plan_tile(ScalarType storage, int64_t group_in_channels, int64_t group_out_channels,
                   int64_t taps, bool is_forward) {
  const KernelTable& table = kernels();
  const bool has_dot = table.gemm_bfloat16[0].multiply != nullptr;
  GemmPlan plan{};
  plan.compute = storage == ScalarType::Double                ? ScalarType::Double
                 : storage == ScalarType::BFloat16 && has_dot ? ScalarType::BFloat16
                                                              : ScalarType::Float;
  visit_compute(plan, [&]<class A>() {
    const auto* candidates = gemm_kernels<A>(table);
    plan.kernel_index = group_out_channels <= candidates[1].tile_cols ? 1 : 0;
    if (is_forward && candidates[kNarrowest].multiply != nullptr &&
        group_out_channels <= candidates[kNarrowest].tile_cols) {
      plan.kernel_index = kNarrowest;
    }
    plan.tile_cols = candidates[plan.kernel_index].tile_cols;
    plan.depth_step = candidates[plan.kernel_index].depth_step;
  });
  plan.is_indirect = storage == plan.compute && group_in_channels >= kSmallDepth &&
                     group_in_channels % plan.depth_step == 0;
  plan.depth = (taps * group_in_channels + plan.depth_step - 1) / plan.depth_step * plan.depth_step;
  plan.panel_blocks = (group_out_channels + plan.tile_cols - 1) / plan.tile_cols;
  return plan;
}

}  // namespace

GemmPlan plan_gemm(ScalarType storage, int64_t group_in_channels, int64_t group_out_channels,
                   int64_t taps) {
  return plan_tile(storage, group_in_channels, group_out_channels, taps, false);
}

GemmPlan plan_forward(ScalarType storage, int64_t group_in_channels, int64_t group_out_channels,
                      int64_t taps) {
  return plan_tile(storage, group_in_channels, group_out_channels, taps, true);
}

namespace {

// Whether a weight lies as (C_out, taps, C) in memory: channels_last, or any with one tap.
bool has_tap_rows(const Tensor& weight) {
  const int64_t channels = weight.size(1);
  const int64_t width = weight.size(3);
  return (weight.stride(1) == 1 || channels == 1) && (weight.stride(3) == channels || width == 1) &&
         (weight.stride(2) == width * channels || weight.size(2) == 1) &&
         (weight.stride(0) == weight.size(2) * width * channels || weight.size(0) == 1);
}

int64_t element_bytes(const GemmPlan& plan) {
  int64_t bytes = 0;
  visit_compute(plan, [&]<class A>() { bytes = sizeof(A); });
  return bytes;
}

}  // namespace

int64_t forward_panel_bytes(const GemmPlan& plan, int64_t groups) {
  return plan.elements(groups) * element_bytes(plan);
}

int64_t dgrad_panel_bytes(const GemmPlan& plan, int64_t groups, int64_t taps) {
  return taps * plan.elements(groups) * element_bytes(plan);
}

void pack_forward(const Tensor& given, const GemmPlan& plan, int64_t groups, void* panels) {
  const bool is_rows = has_tap_rows(given);
  const Tensor weight = is_rows ? given : to_contiguous(given);
  const int64_t channels = weight.size(1);
  const int64_t taps = weight.size(2) * weight.size(3);
  const int64_t outputs = weight.size(0) / groups;
  visit_types(weight.scalar_type(), plan, [&]<class T, class A>() {
    const T* from = data<T>(weight);
    A* to = static_cast<A*>(panels);
    parallel_rows(
        groups * plan.panel_blocks, plan.panel_elements() * 8, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) {
            const int64_t group = i / plan.panel_blocks;
            const int64_t first = i % plan.panel_blocks * plan.tile_cols;
            const int64_t columns = std::min(plan.tile_cols, outputs - first);
            const auto pack = is_rows ? &pack_forward_rows<A, T> : &pack_forward_panel<A, T>;
            pack(from, group * outputs + first, columns, channels, taps, plan,
                 to + i * plan.panel_elements());
          }
        });
  });
}

void pack_dgrad(const Tensor& given, const GemmPlan& plan, int64_t groups, void* panels) {
  const bool is_rows = has_tap_rows(given);
  const Tensor weight = is_rows ? given : to_contiguous(given);
  const int64_t channels = weight.size(1);
  const int64_t taps = weight.size(2) * weight.size(3);
  const int64_t outputs = weight.size(0) / groups;
  const int64_t elements = taps * plan.panel_elements();
  visit_types(weight.scalar_type(), plan, [&]<class T, class A>() {
    const T* from = data<T>(weight);
    A* to = static_cast<A*>(panels);
    parallel_rows(groups * plan.panel_blocks, elements * 8, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t group = i / plan.panel_blocks;
        const int64_t first = i % plan.panel_blocks * plan.tile_cols;
        const int64_t columns = std::min(plan.tile_cols, channels - first);
        const auto pack = is_rows ? &pack_dgrad_rows<A, T> : &pack_dgrad_panel<A, T>;
        pack(from + group * outputs * channels * taps, first, columns, channels, taps, outputs,
             plan, to + i * elements);
      }
    });
  });
}

bool is_current_pack(const Tensor& weight, const Tensor& packed, const GemmPlan& plan,
                     int64_t groups) {
  return matches(weight, packed, plan, groups);
}

namespace {

Tensor pack_weight(const Tensor& weight, int64_t groups) {
  constexpr const char* kOp = "pack_weight";
  check_rank(kOp, "weight", "(C_out, C_in / groups, K_h, K_w)", weight, 4);
  check_floating(kOp, "weight", weight);
  check_weight(kOp, size_vector(weight), groups);
  const GemmPlan plan = plan_forward(weight.scalar_type(), weight.size(1), weight.size(0) / groups,
                                     weight.size(2) * weight.size(3));
  const Tensor panels = torch::stable::empty({plan.elements(groups)}, plan.compute);
  pack_forward(weight, plan, groups, panels.mutable_data_ptr());
  return panels;
}

}  // namespace
}  // namespace perfconv::cpu

STABLE_TORCH_LIBRARY_IMPL(perfconv, CPU, m) {
  m.impl("pack_weight", TORCH_BOX(&perfconv::cpu::pack_weight));
}
