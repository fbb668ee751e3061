// Weight gradient as a GEMM over the active pixels: dW[n][t][c] = sum over p of dY[p, n] X[p + t,
// c].
//
// A block of active pixels is taken at a time. Its dY rows are copied once and broadcast; its X
// rows are the vectors, read where they lie (copied where they must be converted, interleaved for
// dot-product instructions, or padded). The sums of one tile belong to one thread, which adds the
// blocks in ascending order: results do not depend on the number of threads.
#include <algorithm>

#include "cpu/conv.h"
#include "cpu/images.h"
#include "cpu/pack.h"
#include "cpu/row_pointers.h"
#include "cpu/scratch.h"

namespace perfconv::cpu {
namespace {

// 32 columns of 192 rows of floats are 24 KiB, half the L1. With more sums than the second-level
// cache holds, each is loaded half as often (KERNELS.md K-029).
constexpr int64_t kBlockPixels = 192;
constexpr int64_t kManySums = 512 << 10;

template <class T, class A, class Acc>
class WgradGemm {
 public:
  // plan: depth over the output channels, columns over the input channels of a group.
  WgradGemm(const GradProblem& problem, const GemmPlan& plan)
      : problem_(problem),
        g_(problem.geometry),
        plan_(plan),
        kernel_(gemm_kernel<A>(plan)),
        grad_(data<T>(problem.grad_output)),
        input_(data<T>(problem.operand)),
        inputs_(g_.group_in_channels()),
        outputs_(g_.group_out_channels()),
        padded_(plan.panel_blocks * plan.tile_cols),
        // Equal heights: a tile of few rows is bound by the latency of its sums.
        tiles_((outputs_ + kernel_.tile_rows - 1) / kernel_.tile_rows),
        tile_rows_((outputs_ + tiles_ - 1) / tiles_),
        reads_in_place_(std::is_same_v<T, A> && plan.depth_step == 1 && padded_ == inputs_),
        adds_in_place_(std::is_same_v<T, Acc> && padded_ == inputs_ &&
                       (g_.taps() == 1 || is_channels_last(problem.result))),
        scratch_(adds_in_place_
                     ? 0
                     : g_.out_channels * g_.taps() * padded_ * static_cast<int64_t>(sizeof(Acc))),
        block_pixels_(g_.taps() * inputs_ * outputs_ > kManySums ? 2 * kBlockPixels : kBlockPixels),
        zeros_(static_cast<size_t>(std::max(padded_, outputs_)), T{}) {
    if constexpr (std::is_same_v<T, Acc>) {
      if (adds_in_place_) sums_ = mutable_data<T>(problem.result);
    }
    if (!adds_in_place_) sums_ = scratch_.template data<Acc>();
  }

  void run() const {
    const int64_t items = g_.groups * g_.taps() * plan_.panel_blocks * tiles_;
    const int64_t work = problem_.active->count * tile_rows_ * plan_.tile_cols / 16;
    parallel_rows(items, work, [&](int64_t begin, int64_t end) { run_items(begin, end); });
    if (!adds_in_place_) store();
  }

 private:
  static constexpr int64_t kChunk = kMaxTileRows * (std::is_same_v<A, BFloat16> ? 2 : 1);

  struct Pixel {
    Receptive field;
    int64_t origin;  // of its first tap, in elements of the input
    bool is_inside;  // all its taps are
  };

  // The pixels of one block as one thread holds them; a step is plan.depth_step of them.
  struct Block {
    int64_t first = 0;
    int64_t count = 0;
    int64_t steps = 0;
    std::vector<Pixel> pixels;
    std::vector<const T*> inputs;  // X rows of the tap at hand
    std::vector<A> left;           // dY of the group at hand, [tile][step][channel of the tile]
    std::vector<A> row;            // of one step
    std::vector<A> copies;         // X rows, where they are not read in place
    std::vector<const A*> right;   // the vectors of each step
  };

  // Items are (group, tap, column, tile of output channels), tiles fastest.
  void run_items(int64_t begin, int64_t end) const {
    const int64_t count = problem_.active->count;
    Block block;
    block.left.resize(static_cast<size_t>(tiles_ * left_tile()));
    block.row.resize(static_cast<size_t>(outputs_ * plan_.depth_step));
    if (!reads_in_place_) {
      block.copies.assign(static_cast<size_t>(block_pixels_ * copy_pitch()), A{});
    }
    // At least one block, empty if there is no active pixel: the first one sets the sums.
    for (int64_t first = 0; first < std::max<int64_t>(count, 1); first += block_pixels_) {
      start(block, first, std::min(block_pixels_, count - first));
      int64_t group = -1;
      int64_t tap = -1;
      for (int64_t item = begin; item < end;) {
        const int64_t tile = item % tiles_;
        const int64_t column = item / tiles_ % plan_.panel_blocks;
        const int64_t group_tap = item / (tiles_ * plan_.panel_blocks);
        if (group_tap / g_.taps() != group) {
          group = group_tap / g_.taps();
          tap = -1;
          copy_grad(block, group);
        }
        if (group_tap % g_.taps() != tap) {
          tap = group_tap % g_.taps();
          aim(block, group, tap);
        }
        const int64_t tiles = std::min(tiles_ - tile, end - item);
        multiply(block, group, tap, column, tile, tile + tiles);
        item += tiles;
      }
    }
  }

  int64_t left_pitch() const { return tile_rows_ * plan_.depth_step; }
  int64_t left_tile() const { return block_pixels_ * left_pitch() + kChunk; }
  int64_t copy_pitch() const {
    return padded_ * plan_.depth_step + kCacheLine / static_cast<int64_t>(sizeof(A));
  }

  // Where the pixels of a block read, once for all taps.
  void start(Block& block, int64_t first, int64_t count) const {
    block.first = first;
    block.count = count;
    block.steps = (count + plan_.depth_step - 1) / plan_.depth_step;
    block.pixels.resize(static_cast<size_t>(count));
    block.inputs.resize(static_cast<size_t>(count));
    block.right.assign(static_cast<size_t>(block.steps + kStepsAhead), block.left.data());
    for (int64_t i = 0; i < count; ++i) {
      const Receptive field = receptive_field(g_, problem_.active->positions[first + i]);
      const int64_t last_y = field.y + (g_.kernel_height - 1) * g_.dilation_h;
      const int64_t last_x = field.x + (g_.kernel_width - 1) * g_.dilation_w;
      block.pixels[i] = {
          .field = field,
          .origin =
              ((field.image * g_.in_height + field.y) * g_.in_width + field.x) * g_.in_channels,
          .is_inside =
              field.y >= 0 && field.x >= 0 && last_y < g_.in_height && last_x < g_.in_width};
    }
    for (int64_t k = 0; k < block.steps && !reads_in_place_; ++k) {
      block.right[k] = block.copies.data() + k * copy_pitch();
    }
  }

  void copy_grad(Block& block, int64_t group) const {
    auto row = [&](int64_t i) {
      return grad_ + int64_t{problem_.active->positions[block.first + i]} * g_.out_channels +
             group * outputs_;
    };
    const int64_t width = outputs_ * plan_.depth_step;
    const int64_t pitch = left_pitch();
    for (int64_t k = 0; k < block.steps; ++k) {
      const int64_t i = k * plan_.depth_step;
      const A* from = block.row.data();
      if constexpr (std::is_same_v<T, A>) {
        if (plan_.depth_step == 1) from = row(i);
      }
      if (from == block.row.data()) {
        store_step(row(i), i + 1 < block.count ? row(i + 1) : nullptr, outputs_, block.row.data());
      }
      A* to = block.left.data() + k * pitch;
      for (int64_t first = 0; first < width; first += pitch, to += left_tile()) {
        if (first + kChunk <=
            width) {  // of one size: the next step, or nothing, stands after the tile
          std::copy_n(from + first, kChunk, to);
        } else {
          std::copy_n(from + first, std::min(pitch, width - first), to);
        }
      }
    }
  }

  // The X rows of a tap.
  void aim(Block& block, int64_t group, int64_t tap) const {
    // Divisions once a tap, not once a row (KERNELS.md K-016).
    const int64_t down = tap / g_.kernel_width * g_.dilation_h;
    const int64_t right = tap % g_.kernel_width * g_.dilation_w;
    const int64_t offset = (down * g_.in_width + right) * g_.in_channels + group * inputs_;
    for (int64_t i = 0; i < block.count; ++i) {
      const Pixel& pixel = block.pixels[i];
      block.inputs[i] = pixel.is_inside ? input_ + (pixel.origin + offset)
                                        : input_row(pixel.field, down, right, group * inputs_);
    }
    if constexpr (std::is_same_v<T, A>) {
      if (reads_in_place_) {
        std::copy(block.inputs.begin(), block.inputs.end(), block.right.begin());
        return;
      }
    }
    for (int64_t k = 0; k < block.steps; ++k) {
      const int64_t i = k * plan_.depth_step;
      store_step(block.inputs[i], i + 1 < block.count ? block.inputs[i + 1] : nullptr, inputs_,
                 block.copies.data() + k * copy_pitch());
    }
  }

  const T* input_row(const Receptive& field, int64_t down, int64_t right, int64_t channel) const {
    const int64_t y = field.y + down;
    const int64_t x = field.x + right;
    if (y < 0 || y >= g_.in_height || x < 0 || x >= g_.in_width) return zeros_.data();
    return input_ + ((field.image * g_.in_height + y) * g_.in_width + x) * g_.in_channels + channel;
  }

  // One step: a row, or two rows interleaved (null: zeros).
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

  void multiply(const Block& block, int64_t group, int64_t tap, int64_t column, int64_t tile,
                int64_t end_tile) const {
    const int64_t pitch = adds_in_place_ ? g_.taps() * inputs_ : plan_.tile_cols;
    Acc* sums = adds_in_place_ ? sums_ + (group * outputs_ * g_.taps() + tap) * inputs_ +
                                     column * plan_.tile_cols
                               : column_sums(group, tap, column);
    const int64_t first = column * plan_.tile_cols * plan_.depth_step;
    const int64_t begin = tile * tile_rows_;
    const int64_t end = std::min(end_tile * tile_rows_, outputs_);
    for (int64_t n = begin; n < end; n += tile_rows_) {
      const int64_t count = std::min(tile_rows_, end - n);
      const int64_t next = std::min(tile_rows_, end - n - count);
      kernel_.outer(block.left.data() + n / tile_rows_ * left_tile(), left_pitch(),
                    block.right.data(), first, block.steps, count, block.first == 0,
                    sums + n * pitch, pitch, next);
    }
  }

  // [group][tap][column][n][tile_cols]
  Acc* column_sums(int64_t group, int64_t tap, int64_t column) const {
    return sums_ +
           ((group * g_.taps() + tap) * plan_.panel_blocks + column) * outputs_ * plan_.tile_cols;
  }

  // The sums to the weight's (C_out, taps, C_in / groups) if it is channels_last, else to its
  // (C_out, C_in / groups, taps).
  void store() const {
    T* result = mutable_data<T>(problem_.result);
    const int64_t row = g_.taps() * inputs_;
    const bool has_tap_rows = g_.taps() == 1 || is_channels_last(problem_.result);
    parallel_rows(g_.out_channels, row / 4, [&](int64_t begin, int64_t end) {
      std::vector<float> turned(static_cast<size_t>(g_.taps() * plan_.tile_cols));
      for (int64_t n = begin; n < end; ++n) {
        for (int64_t column = 0; column < plan_.panel_blocks; ++column) {
          if (has_tap_rows) {
            store_taps(n, column, result + n * row);
          } else {
            store_turned(n, column, turned, result + n * row);
          }
        }
      }
    });
  }

  const Acc* sums_row(int64_t n, int64_t tap, int64_t column) const {
    return column_sums(n / outputs_, tap, column) + n % outputs_ * plan_.tile_cols;
  }
  int64_t width_of(int64_t column) const {
    return std::min(plan_.tile_cols, inputs_ - column * plan_.tile_cols);
  }

  void store_taps(int64_t n, int64_t column, T* to) const {
    for (int64_t tap = 0; tap < g_.taps(); ++tap) {
      convert_row(sums_row(n, tap, column), to + tap * inputs_ + column * plan_.tile_cols,
                  width_of(column));
    }
  }

  void store_turned(int64_t n, int64_t column, std::vector<float>& turned, T* row) const {
    const int64_t taps = g_.taps();
    const int64_t width = width_of(column);
    T* to = row + column * plan_.tile_cols * taps;
    if constexpr (std::is_same_v<Acc, double>) {
      for (int64_t tap = 0; tap < taps; ++tap) {
        const Acc* from = sums_row(n, tap, column);
        for (int64_t c = 0; c < width; ++c) to[c * taps + tap] = from[c];
      }
    } else {
      std::vector<const float*> from(static_cast<size_t>(taps));
      float* to_rows[kMaxTileCols];
      for (int64_t tap = 0; tap < taps; ++tap) from[tap] = sums_row(n, tap, column);
      for (int64_t c = 0; c < width; ++c) {
        to_rows[c] = turned.data() + c * taps;
        if constexpr (std::is_same_v<T, float>) to_rows[c] = to + c * taps;
      }
      kernels().transpose(from.data(), taps, to_rows, width);
      if constexpr (!std::is_same_v<T, float>) convert_row(turned.data(), to, width * taps);
    }
  }

  const GradProblem& problem_;
  const ConvGeometry& g_;
  const GemmPlan& plan_;
  const GemmKernel<A, Acc>& kernel_;
  const T* grad_;
  const T* input_;
  int64_t inputs_;   // channels of a group
  int64_t outputs_;  // channels of a group
  int64_t padded_;   // inputs_, rounded up to whole columns
  int64_t tiles_;
  int64_t tile_rows_;
  bool reads_in_place_;  // X
  bool adds_in_place_;   // the sums are the result
  Scratch scratch_;
  int64_t block_pixels_;
  Acc* sums_ = nullptr;
  std::vector<T> zeros_;
};

}  // namespace

void wgrad_implicit_gemm(const GradProblem& problem) {
  const ConvGeometry& g = problem.geometry;
  const ScalarType storage = problem.result.scalar_type();
  const GemmPlan plan = plan_gemm(storage, g.group_out_channels(), g.group_in_channels(), 1);
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
