// Weight gradient as a GEMM over the active pixels: dW[t][c][n] = sum over p of X[p + t, c] dY[p,
// n].
//
// A block of active pixels is taken at a time: its dY rows are copied into panels, and for each tap
// its X rows into rows that do not share cache sets (interleaved two by two for dot-product
// instructions). The sums of one (tap, channel tile) belong to one thread, which adds the blocks in
// ascending order: results do not depend on the number of threads.
#include <algorithm>

#include "cpu/conv.h"
#include "cpu/images.h"
#include "cpu/pack.h"
#include "cpu/row_pointers.h"
#include "cpu/scratch.h"

namespace perfconv::cpu {
namespace {

// A 32-column panel of 192 floats is 24 KiB, half the L1. With more sums than the second-level
// cache holds, each is loaded half as often (KERNELS.md K-029).
constexpr int64_t kBlockPixels = 192;
constexpr int64_t kManySums = 512 << 10;

template <class T, class A, class Acc>
class WgradGemm {
 public:
  WgradGemm(const GradProblem& problem, const GemmPlan& plan)
      : problem_(problem),
        g_(problem.geometry),
        plan_(plan),
        kernel_(gemm_kernel<A>(plan)),
        grad_(data<T>(problem.grad_output)),
        input_(data<T>(problem.operand)),
        channel_tiles_((g_.group_in_channels() + kernel_.tile_rows - 1) / kernel_.tile_rows),
        // Equal heights: a tile of few rows is bound by the latency of its sums.
        tile_channels_((g_.group_in_channels() + channel_tiles_ - 1) / channel_tiles_),
        padded_(plan.panel_blocks * plan.tile_cols),
        scratch_(g_.groups * g_.taps() * g_.group_in_channels() * padded_ *
                 static_cast<int64_t>(sizeof(Acc))),
        block_pixels_(g_.taps() * g_.group_in_channels() * padded_ > kManySums ? 2 * kBlockPixels
                                                                               : kBlockPixels),
        sums_(scratch_.data<Acc>()),
        zeros_(static_cast<size_t>(std::max(g_.group_in_channels(), g_.group_out_channels())),
               T{}) {}

  void run() {
    const int64_t items = g_.groups * g_.taps() * channel_tiles_;
    const int64_t work = problem_.active->count * kernel_.tile_rows * padded_ / 16;
    parallel_rows(items, work, [&](int64_t begin, int64_t end) { run_items(begin, end); });
    store();
  }

 private:
  void run_items(int64_t begin, int64_t end) {
    const int64_t count = problem_.active->count;
    std::vector<A> panels(static_cast<size_t>(block_pixels_ * padded_));
    Left left(*this);
    // At least one block, empty if there is no active pixel: the first one sets the sums.
    for (int64_t block = 0; block < std::max<int64_t>(count, 1); block += block_pixels_) {
      const int64_t pixels = std::min(block_pixels_, count - block);
      left.start(block, pixels);
      int64_t group = -1;
      for (int64_t item = begin; item < end;) {
        const int64_t tap = item / channel_tiles_ % g_.taps();
        const int64_t first_tile = item % channel_tiles_;
        const int64_t tiles = std::min(channel_tiles_ - first_tile, end - item);
        if (item / (channel_tiles_ * g_.taps()) != group) {
          group = item / (channel_tiles_ * g_.taps());
          pack_grad(block, pixels, group, panels.data());
        }
        left.fill(group, tap);
        multiply(left, panels.data(), group, tap, first_tile, tiles, block == 0);
        item += tiles;
      }
    }
  }

  int64_t steps(int64_t pixels) const { return (pixels + plan_.depth_step - 1) / plan_.depth_step; }

  // dY of one group as panels [column block][step][tile_cols][depth_step], zero where ragged.
  void pack_grad(int64_t block, int64_t pixels, int64_t group, A* panels) const {
    const int64_t width = g_.group_out_channels();
    const int64_t step_elements = plan_.tile_cols * plan_.depth_step;
    const int64_t rounded = steps(pixels) * plan_.depth_step;
    for (int64_t column = 0; column < plan_.panel_blocks; ++column) {
      const int64_t first = column * plan_.tile_cols;
      const int64_t channels = std::min(plan_.tile_cols, width - first);
      A* panel = panels + column * steps(pixels) * step_elements;
      if (channels < plan_.tile_cols || rounded != pixels) {
        std::fill_n(panel, steps(pixels) * step_elements, A{});
      }
      auto row = [&](int64_t i) {
        return grad_ + int64_t{problem_.active->positions[block + i]} * g_.out_channels +
               group * width + first;
      };
      for (int64_t i = 0; i < pixels; i += plan_.depth_step) {
        store_step(row(i), i + 1 < pixels ? row(i + 1) : nullptr, channels,
                   panel + i / plan_.depth_step * step_elements);
      }
    }
  }

  // One step of a panel or of the left rows: a row, or two rows interleaved (null: zeros).
  void store_step(const T* first, const T* second, int64_t channels, A* to) const {
    if constexpr (std::is_same_v<T, A>) {
      if (plan_.depth_step == 2) {
        row_kernel<A>(kernels()).interleave(first, second != nullptr ? second : zeros_.data(), to,
                                            channels);
        return;
      }
    }
    convert_row(first, to, channels);
  }

  // The X rows of a block at one tap, as GemmKernel::outer takes them. Copied even where they could
  // be read in place: rows a power of two apart share few cache sets (KERNELS.md K-029).
  class Left {
   public:
    explicit Left(const WgradGemm& gemm)
        : gemm_(gemm),
          pitch_(gemm.g_.group_in_channels() * gemm.plan_.depth_step + 64 / sizeof(A)),
          copies_(static_cast<size_t>(gemm.block_pixels_ * pitch_)) {}

    // Where the pixels of a block read, once for all taps.
    void start(int64_t block, int64_t pixels) {
      const ConvGeometry& g = gemm_.g_;
      pixels_.resize(static_cast<size_t>(pixels));
      rows_.resize(static_cast<size_t>(pixels));
      for (int64_t i = 0; i < pixels; ++i) {
        const Receptive field = receptive_field(g, gemm_.problem_.active->positions[block + i]);
        const int64_t last_y = field.y + (g.kernel_height - 1) * g.dilation_h;
        const int64_t last_x = field.x + (g.kernel_width - 1) * g.dilation_w;
        pixels_[i] = {.field = field,
                      .origin = ((field.image * g.in_height + field.y) * g.in_width + field.x) *
                                g.in_channels,
                      .is_inside = field.y >= 0 && field.x >= 0 && last_y < g.in_height &&
                                   last_x < g.in_width};
      }
      steps_ = gemm_.steps(pixels);
    }

    void fill(int64_t group, int64_t tap) {
      const ConvGeometry& g = gemm_.g_;
      const auto pixels = static_cast<int64_t>(pixels_.size());
      const int64_t channels = g.group_in_channels();
      // Divisions once a tap, not once a row (KERNELS.md K-016).
      const int64_t down = tap / g.kernel_width * g.dilation_h;
      const int64_t right = tap % g.kernel_width * g.dilation_w;
      const int64_t offset = (down * g.in_width + right) * g.in_channels + group * channels;
      for (int64_t i = 0; i < pixels; ++i) {
        const Pixel& pixel = pixels_[i];
        rows_[i] = pixel.is_inside ? gemm_.input_ + (pixel.origin + offset)
                                   : gemm_.input_row(pixel.field, down, right, group * channels);
      }
      if constexpr (std::is_same_v<A, AccumulateType<T>>) {
        const RowKernel<T, A>& row = row_kernel<T>(kernels());
        for (int64_t i = 0; i < pixels; ++i) {
          row.widen(rows_[i], copies_.data() + i * pitch_, channels);
        }
      } else {
        const int64_t step = gemm_.plan_.depth_step;
        for (int64_t i = 0; i < pixels; i += step) {
          gemm_.store_step(rows_[i], i + 1 < pixels ? rows_[i + 1] : nullptr, channels,
                           copies_.data() + i / step * pitch_);
        }
      }
    }

    const A* rows(int64_t channel) const {
      return copies_.data() + channel * gemm_.plan_.depth_step;
    }
    int64_t pitch() const { return pitch_; }
    int64_t steps() const { return steps_; }

   private:
    struct Pixel {
      Receptive field;
      int64_t origin;  // of its first tap, in elements of the input
      bool is_inside;  // all its taps are
    };

    const WgradGemm& gemm_;
    int64_t pitch_;
    std::vector<Pixel> pixels_;
    std::vector<const T*> rows_;  // of the tap at hand
    std::vector<A> copies_;
    int64_t steps_ = 0;
  };

  const T* input_row(const Receptive& field, int64_t down, int64_t right, int64_t channel) const {
    const int64_t y = field.y + down;
    const int64_t x = field.x + right;
    if (y < 0 || y >= g_.in_height || x < 0 || x >= g_.in_width) return zeros_.data();
    return input_ + ((field.image * g_.in_height + y) * g_.in_width + x) * g_.in_channels + channel;
  }

  void multiply(Left& left, const A* panels, int64_t group, int64_t tap, int64_t first_tile,
                int64_t tiles, bool is_first) {
    const int64_t panel_elements = left.steps() * plan_.tile_cols * plan_.depth_step;
    const int64_t channels = g_.group_in_channels();
    const int64_t end = std::min((first_tile + tiles) * tile_channels_, channels);
    Acc* column_sums = sums_ + (group * g_.taps() + tap) * channels * padded_;
    for (int64_t column = 0; column < plan_.panel_blocks; ++column) {
      for (int64_t channel = first_tile * tile_channels_; channel < end;
           channel += tile_channels_) {
        const int64_t count = std::min(tile_channels_, end - channel);
        Acc* sums = column_sums + channel * plan_.tile_cols;
        const Acc* next = sums + count * plan_.tile_cols;
        const Acc* next_end = next + std::min(count, end - channel - count) * plan_.tile_cols;
        kernel_.outer(left.rows(channel), left.pitch(), panels + column * panel_elements,
                      left.steps(), count, is_first,
                      {.begin = reinterpret_cast<const char*>(next),
                       .end = reinterpret_cast<const char*>(next_end)},
                      sums);
      }
      column_sums += channels * plan_.tile_cols;
    }
  }

  // sums [group][tap][panel][c][tile_cols] to the weight's (C_out, C_in / groups, taps), or
  // channels_last (C_out, taps, C_in / groups), transposed a panel at a time.
  void store() const {
    const int64_t channels = g_.group_in_channels();
    const int64_t width = g_.group_out_channels();
    T* result = mutable_data<T>(problem_.result);
    parallel_rows(g_.groups * plan_.panel_blocks, channels * g_.taps() * plan_.tile_cols * 4,
                  [&](int64_t begin, int64_t end) {
                    for (int64_t block = begin; block < end; ++block) {
                      const int64_t group = block / plan_.panel_blocks;
                      const int64_t first = block % plan_.panel_blocks * plan_.tile_cols;
                      store_block(group, first, std::min(plan_.tile_cols, width - first),
                                  result + (group * width + first) * channels * g_.taps());
                    }
                  });
  }

  void store_block(int64_t group, int64_t first, int64_t outputs, T* result) const {
    const int64_t channels = g_.group_in_channels();
    const int64_t taps = g_.taps();
    const Acc* sums = sums_ + group * taps * channels * padded_ + first * channels;
    std::vector<const Acc*> from(static_cast<size_t>(channels * taps));
    const bool has_tap_rows = is_channels_last(problem_.result);
    for (int64_t k = 0; k < channels * taps; ++k) {
      const int64_t tap = has_tap_rows ? k / channels : k % taps;
      const int64_t channel = has_tap_rows ? k % channels : k / taps;
      from[k] = sums + tap * channels * padded_ + channel * plan_.tile_cols;
    }
    if constexpr (std::is_same_v<Acc, double>) {
      for (int64_t n = 0; n < outputs; ++n) {
        for (int64_t k = 0; k < channels * taps; ++k) result[n * channels * taps + k] = from[k][n];
      }
    } else {
      constexpr int64_t kRun = 256;
      std::vector<float> turned(std::is_same_v<T, float> ? 0 : static_cast<size_t>(outputs * kRun));
      std::vector<float*> to(static_cast<size_t>(outputs));
      for (int64_t k = 0; k < channels * taps; k += kRun) {
        const int64_t count = std::min(kRun, channels * taps - k);
        for (int64_t n = 0; n < outputs; ++n) {
          if constexpr (std::is_same_v<T, float>) {
            to[n] = result + n * channels * taps + k;
          } else {
            to[n] = turned.data() + n * kRun;
          }
        }
        kernels().transpose(from.data() + k, count, to.data(), outputs);
        for (int64_t n = 0; n < outputs && !std::is_same_v<T, float>; ++n) {
          convert_row(to[n], result + n * channels * taps + k, count);
        }
      }
    }
  }

  const GradProblem& problem_;
  const ConvGeometry& g_;
  const GemmPlan& plan_;
  const GemmKernel<A, Acc>& kernel_;
  const T* grad_;
  const T* input_;
  int64_t channel_tiles_;
  int64_t tile_channels_;
  int64_t padded_;  // output channels of a group, rounded up to whole panels
  Scratch scratch_;
  int64_t block_pixels_;
  Acc* sums_;
  std::vector<T> zeros_;
};

}  // namespace

void wgrad_implicit_gemm(const GradProblem& problem) {
  const ConvGeometry& g = problem.geometry;
  const ScalarType storage = problem.result.scalar_type();
  const GemmPlan plan = plan_gemm(storage, g.group_in_channels(), g.group_out_channels(), 1);
  visit_dtype("perforated_conv2d_wgrad", storage, [&]<class T>() {
    using Acc = AccumulateType<T>;
    visit_compute(plan, [&]<class A>() {
      if constexpr (std::is_same_v<AccumulateType<A>, Acc>) {
        WgradGemm<T, A, Acc>(problem, plan).run();
      }
    });
  });
}

}  // namespace perfconv::cpu
