// Forward implicit GEMM: M = active pixels, N = output channels, K = taps * input channels.
//
// A chunk of active pixels gets its row pointers once and is then multiplied with every panel of
// the weight; a tile of sums is finished (bias, residual, activation) and stored to its pixels
// while it is in the first-level cache. No im2col matrix; inactive pixels cost their fill only.
#include <algorithm>

#include "cpu/conv.h"
#include "cpu/images.h"
#include "cpu/pack.h"
#include "cpu/row_pointers.h"
#include "cpu/scratch.h"

namespace perfconv::cpu {
namespace {

constexpr int64_t kChunkBytes = 256 << 10;  // pointers or copied rows of one chunk: half the L2
constexpr int64_t kChunkTiles = 32;
constexpr int64_t kLineChunkTiles = 2;         // so that the fill's stores drain meanwhile (K-066)
constexpr int64_t kTapChunkBytes = 768 << 10;  // rows of one tap and sums of one chunk

// Work of one call, the same for all threads. Items are (column chunk, tile of pixels), tiles
// fastest; columns are split only if the tiles alone are too few to balance the threads.
struct Split {
  int64_t tiles;
  int64_t column_chunks;
  int64_t columns;  // panels over all groups
  int64_t items() const { return tiles * column_chunks; }
  int64_t column_begin(int64_t chunk) const { return columns * chunk / column_chunks; }
};

Split split_work(int64_t pixels, int64_t tile_rows, int64_t columns) {
  Split split{
      .tiles = (pixels + tile_rows - 1) / tile_rows, .column_chunks = 1, .columns = columns};
  const int64_t enough = 8 * static_cast<int64_t>(torch::stable::get_num_threads());
  if (split.tiles > 0 && split.tiles < enough) {
    split.column_chunks = std::min(columns, (enough + split.tiles - 1) / split.tiles);
  }
  return split;
}

template <class T, class A, class Acc>
class ImplicitGemm {
 public:
  // lines: room for LineRows, or null.
  ImplicitGemm(const ForwardProblem& problem, const GemmPlan& plan, const A* panels,
               const Acc* bias, A* lines)
      : problem_(problem),
        g_(problem.geometry),
        plan_(plan),
        kernel_(gemm_kernel<A>(plan)),
        panels_(panels),
        bias_(bias),
        lines_(lines),
        residual_(problem.residual ? data<T>(*problem.residual) : nullptr),
        output_(mutable_data<T>(problem.output)),
        zeros_(static_cast<size_t>(g_.group_in_channels()), A{}),
        split_(
            split_work(problem.active->count, kernel_.tile_rows, plan.panel_blocks * g_.groups)) {}

  void run() const {
    const int64_t pixels = g_.out_pixels();
    const int64_t items = std::max<int64_t>(1, split_.items());
    const int64_t work =
        kernel_.tile_rows * plan_.panel_elements() * split_.columns / split_.column_chunks / 16 +
        pixels * g_.out_channels / items / 8;
    if (lines_ != nullptr) LineRows<T, A>::copy(g_, data<T>(problem_.input), lines_);
    parallel_rows(items, work, [&](int64_t begin, int64_t end) {
      if (split_.column_chunks > 1 || split_.items() == 0) {
        fill_inactive(problem_, pixels * begin / items, pixels * end / items);
      }
      if (split_.items() == 0) return;
      if constexpr (std::is_same_v<T, A>) {
        if (plan_.is_indirect) {
          TapPointers<A> rows(g_, data<T>(problem_.input), zeros_.data(), kernel_.tile_rows);
          return run_items(rows, g_.taps(), g_.group_in_channels(), begin, end);
        }
      }
      if (lines_ != nullptr) {
        LineRows<T, A> rows(g_, lines_, kernel_.tile_rows);
        return run_items(rows, g_.kernel_height, g_.kernel_width * g_.in_channels, begin, end);
      }
      PatchRows<T, A> rows(g_, data<T>(problem_.input), plan_.depth, kernel_.tile_rows);
      run_items(rows, 1, plan_.depth, begin, end);
    });
  }

 private:
  template <class Rows>
  void run_items(Rows& rows, int64_t taps, int64_t depth, int64_t begin, int64_t end) const {
    const bool is_by_taps = problem_.is_by_taps && taps > 1 && g_.groups == 1;
    const int64_t tap_tile_bytes =
        kernel_.tile_rows * (depth * static_cast<int64_t>(sizeof(A)) +
                             g_.out_channels * static_cast<int64_t>(sizeof(Acc)));
    const int64_t tap_tiles = std::clamp<int64_t>(kTapChunkBytes / tap_tile_bytes, 1, kChunkTiles);
    Scratch sums(is_by_taps ? tap_tiles * kernel_.tile_rows * split_.columns * plan_.tile_cols *
                                  static_cast<int64_t>(sizeof(Acc))
                            : 0);
    const int64_t tile_bytes = kernel_.tile_rows * (taps * static_cast<int64_t>(sizeof(void*)) +
                                                    (taps == 1 ? depth * sizeof(A) : 0));
    const int64_t most_tiles = lines_ != nullptr ? kLineChunkTiles : kChunkTiles;
    const int64_t chunk_tiles =
        is_by_taps ? tap_tiles : std::clamp<int64_t>(kChunkBytes / tile_bytes, 1, most_tiles);
    for (int64_t item = begin; item < end;) {
      const int64_t chunk = item / split_.tiles;
      const int64_t first = item % split_.tiles;
      const int64_t tiles = std::min({chunk_tiles, split_.tiles - first, end - item});
      if (split_.column_chunks == 1) fill_beside(first, first + tiles);
      const int64_t columns[] = {split_.column_begin(chunk), split_.column_begin(chunk + 1)};
      if (is_by_taps) {
        run_taps(rows, taps, depth, first, tiles, columns[0], columns[1], sums.data<Acc>());
      } else {
        run_chunk(rows, taps, depth, first, tiles, columns[0], columns[1]);
      }
      item += tiles;
    }
  }

  // Fills what lies between the active pixels of these tiles, and beyond the first and last tile.
  void fill_beside(int64_t first_tile, int64_t end_tile) const {
    const int32_t* positions = problem_.active->positions.get();
    const int64_t begin = first_tile == 0 ? 0 : positions[first_tile * kernel_.tile_rows];
    const int64_t end =
        end_tile == split_.tiles ? g_.out_pixels() : positions[end_tile * kernel_.tile_rows];
    fill_before(problem_, begin, end);
  }

  template <class Rows>
  void run_chunk(Rows& rows, int64_t taps, int64_t depth, int64_t first_tile, int64_t tiles,
                 int64_t column_begin, int64_t column_end) const {
    const int64_t first = first_tile * kernel_.tile_rows;
    const int64_t pixels = std::min(tiles * kernel_.tile_rows, problem_.active->count - first);
    const int32_t* positions = problem_.active->positions.get() + first;
    int64_t group = -1;
    for (int64_t column = column_begin; column < column_end; ++column) {
      if (column / plan_.panel_blocks != group) {
        group = column / plan_.panel_blocks;
        rows.fill(positions, pixels, group * g_.group_in_channels());
      }
      const int64_t channel = column % plan_.panel_blocks * plan_.tile_cols;
      const int64_t channels = std::min(plan_.tile_cols, g_.group_out_channels() - channel);
      const A* panel = panels_ + column * plan_.panel_elements();
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t pixel = tile * kernel_.tile_rows;
        const int64_t count = std::min(kernel_.tile_rows, pixels - pixel);
        alignas(64) Acc sums[kMaxTileRows * kMaxTileCols];
        const void* residuals[kMaxTileRows];
        NextLines next = next_lines(rows, tile, tiles, column, column_begin, column_end);
        if (residual_ != nullptr && next.begin == nullptr) {
          const int64_t following = std::min(kernel_.tile_rows, pixels - pixel - count);
          next = residual_lines(positions + pixel + count, following,
                                group * g_.group_out_channels() + channel, channels, residuals);
        }
        kernel_.multiply(rows.tile(tile), count, taps, depth, panel, next, sums);
        finish(sums, positions + pixel, count, group * g_.group_out_channels() + channel, channels);
      }
    }
  }

  // run_chunk with the taps outside: a tap's rows are read from afar once for all columns. sums
  // keeps [column][tile] tiles from one tap to the next.
  template <class Rows>
  void run_taps(Rows& rows, int64_t taps, int64_t depth, int64_t first_tile, int64_t tiles,
                int64_t column_begin, int64_t column_end, Acc* sums) const {
    const int64_t first = first_tile * kernel_.tile_rows;
    const int64_t pixels = std::min(tiles * kernel_.tile_rows, problem_.active->count - first);
    const int32_t* positions = problem_.active->positions.get() + first;
    const int64_t slice = depth * plan_.tile_cols;  // of a panel, for one tap
    const auto add = row_kernel<Acc>(kernels()).add;
    rows.fill(positions, pixels, 0);
    for (int64_t tap = 0; tap < taps; ++tap) {
      for (int64_t column = column_begin; column < column_end; ++column) {
        const A* panel = panels_ + column * plan_.panel_elements() + tap * slice;
        const A* next = column + 1 < column_end ? panel + plan_.panel_elements() : nullptr;
        for (int64_t tile = 0; tile < tiles; ++tile) {
          const int64_t pixel = tile * kernel_.tile_rows;
          const int64_t count = std::min(kernel_.tile_rows, pixels - pixel);
          Acc* kept =
              sums + ((column - column_begin) * tiles + tile) * kernel_.tile_rows * plan_.tile_cols;
          alignas(64) Acc part[kMaxTileRows * kMaxTileCols];
          kernel_.multiply(rows.tile(tile) + tap * kernel_.tile_rows, count, 1, depth, panel,
                           share_of(next, slice, tile, tiles), tap == 0 ? kept : part);
          if (tap > 0) add(part, kept, count * plan_.tile_cols);
          if (tap + 1 < taps) continue;
          const int64_t channel = column * plan_.tile_cols;
          finish(kept, positions + pixel, count, channel,
                 std::min(plan_.tile_cols, g_.out_channels - channel));
        }
      }
    }
  }

  static NextLines share_of(const A* from, int64_t elements, int64_t tile, int64_t tiles) {
    if (from == nullptr) return {};
    return {.begin = reinterpret_cast<const char*>(from + elements * tile / tiles),
            .end = reinterpret_cast<const char*>(from + elements * (tile + 1) / tiles)};
  }

  // What to fetch beside a tile: at the end of a column the panel of the next one, half a panel a
  // tile (a depth step reads two lines and fetches one; KERNELS.md K-028); in the first column the
  // input of the next tile.
  template <class Rows>
  NextLines next_lines(const Rows& rows, int64_t tile, int64_t tiles, int64_t column,
                       int64_t column_begin, int64_t column_end) const {
    const int64_t left = tiles - tile;
    if (left <= 2 && column + 1 < column_end) {
      const A* panel = panels_ + (column + 1) * plan_.panel_elements();
      const A* middle = panel + plan_.panel_elements() / 2;
      const A* begin = left == 2 || tiles == 1 ? panel : middle;
      return {.begin = reinterpret_cast<const char*>(begin),
              .end = reinterpret_cast<const char*>(
                  begin == panel ? middle : panel + plan_.panel_elements())};
    }
    return column == column_begin ? rows.after(tile) : NextLines{};
  }

  // What finish() adds to these channels of the next pixels; rows: room for their addresses.
  NextLines residual_lines(const int32_t* positions, int64_t count, int64_t channel,
                           int64_t channels, const void** rows) const {
    for (int64_t m = 0; m < count; ++m) {
      rows[m] = residual_ + (int64_t{positions[m]} * g_.out_channels + channel);
    }
    return gathered(rows, count, channels * static_cast<int64_t>(sizeof(T)));
  }

  void finish(const Acc* sums, const int32_t* positions, int64_t count, int64_t channel,
              int64_t channels) const {
    T* out[kMaxTileRows];
    const T* residual[kMaxTileRows];
    for (int64_t m = 0; m < count; ++m) {
      const int64_t offset = int64_t{positions[m]} * g_.out_channels + channel;
      out[m] = output_ + offset;
      if (residual_ != nullptr) residual[m] = residual_ + offset;
    }
    row_kernel<T>(kernels()).finish(
        sums, plan_.tile_cols, count, bias_ != nullptr ? bias_ + channel : nullptr,
        residual_ != nullptr ? residual : nullptr, problem_.activation, out, channels);
  }

  const ForwardProblem& problem_;
  const ConvGeometry& g_;
  const GemmPlan& plan_;
  const GemmKernel<A, Acc>& kernel_;
  const A* panels_;
  const Acc* bias_;
  A* lines_;
  const T* residual_;
  T* output_;
  std::vector<A> zeros_;
  Split split_;
};

}  // namespace

void forward_implicit_gemm(const ForwardProblem& problem) {
  const ConvGeometry& g = problem.geometry;
  const ScalarType storage = problem.input.scalar_type();
  const GemmPlan plan =
      plan_forward(storage, g.group_in_channels(), g.group_out_channels(), g.taps());
  const bool has_pack =
      problem.packed && is_current_pack(problem.weight, *problem.packed, plan, g.groups);
  const bool must_pack = !has_pack && problem.active->count > 0;
  visit_dtype("perforated_conv2d", storage, [&]<class T>() {
    using Acc = AccumulateType<T>;
    std::vector<Acc> bias;
    if (problem.bias) {
      bias.resize(static_cast<size_t>(g.out_channels));
      convert_row(data<T>(*problem.bias), bias.data(), g.out_channels);
    }
    const Acc* bias_values = problem.bias ? bias.data() : nullptr;
    visit_compute(plan, [&]<class A>() {
      if constexpr (std::is_same_v<AccumulateType<A>, Acc>) {
        const int64_t panel_bytes =
            must_pack
                ? (forward_panel_bytes(plan, g.groups) + kCacheLine - 1) / kCacheLine * kCacheLine
                : 0;
        const bool has_lines =
            !plan.is_indirect && LineRows<T, A>::takes(g, problem.active->count, plan.depth_step);
        const int64_t line_bytes =
            has_lines ? LineRows<T, A>::elements(g) * static_cast<int64_t>(sizeof(A)) : 0;
        Scratch scratch(panel_bytes + line_bytes);
        if (must_pack) pack_forward(problem.weight, plan, g.groups, scratch.data<void>());
        const A* panels = has_pack ? data<A>(*problem.packed) : scratch.data<A>();
        A* lines = has_lines ? reinterpret_cast<A*>(scratch.data<char>() + panel_bytes) : nullptr;
        ImplicitGemm<T, A, Acc>(problem, plan, panels, bias_values, lines).run();
      }
    });
  });
}

}  // namespace perfconv::cpu
