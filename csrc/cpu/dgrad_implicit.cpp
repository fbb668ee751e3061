// Input gradient as an exact implicit GEMM: dX[p*s + t] += dY[p] W_t for every active p and tap t.
//
// For one tap the map from outputs to inputs is one-to-one, so a tap is a GEMM over the active rows
// whose sums are loaded from and stored to the input rows: exactly density * dense MACs, no sort
// and no padding. A band of input rows belongs to one item; the outputs that reach it through one
// tap row are a contiguous range of the active list. Every sum has one owner and runs over the taps
// in a fixed order, so results do not depend on the number of threads.
#include <algorithm>

#include "cpu/conv.h"
#include "cpu/images.h"
#include "cpu/pack.h"
#include "cpu/row_pointers.h"
#include "cpu/scratch.h"

namespace perfconv::cpu {
namespace {

constexpr int64_t kBandPixels = 256;  // active pixels a band should have: few ragged tiles

// What a thread keeps from band to band.
template <class A, class Acc>
struct BandBuffers {
  std::vector<const A*> grad;   // dY row of each active output that reaches the band
  std::vector<int64_t> origin;  // where its tap (0, 0) falls in the band: element offset
  std::vector<int64_t> x;       // and input column
  std::vector<Acc*> target;     // of one tap
  std::vector<A> copies;        // dY rows converted, where they are not read in place
  std::vector<Acc> sums;        // the band, where the result is of another type
  std::vector<Acc> discarded;   // takes what taps beyond the left and right border give
};

template <class T, class A, class Acc>
class DgradGemm {
 public:
  DgradGemm(const GradProblem& problem, const GemmPlan& plan, const A* panels)
      : problem_(problem),
        g_(problem.geometry),
        plan_(plan),
        kernel_(gemm_kernel<A>(plan)),
        panels_(panels),
        grad_(data<T>(problem.grad_output)),
        result_(mutable_data<T>(problem.result)) {
    const int64_t threads = torch::stable::get_num_threads();
    const int64_t lines = g_.batch * g_.in_height;
    const int64_t wanted = std::max<int64_t>(1, problem.active->count / kBandPixels);
    const int64_t bands = std::min(lines, (wanted + threads - 1) / threads * threads);
    band_lines_ = std::max<int64_t>(1, lines / std::max<int64_t>(1, bands));
    bands_per_image_ = (g_.in_height + band_lines_ - 1) / band_lines_;
  }

  void run() const {
    const int64_t bands = g_.batch * bands_per_image_;
    const int64_t work = problem_.active->count * g_.taps() * plan_.depth * g_.in_channels / 16 /
                             std::max<int64_t>(1, bands) +
                         band_lines_ * g_.in_width * g_.in_channels / 8;
    parallel_rows(bands, work, [&](int64_t begin, int64_t end) {
      BandBuffers<A, Acc> buffers;
      buffers.discarded.resize(static_cast<size_t>(g_.in_channels));
      for (int64_t band = begin; band < end; ++band) run_band(band, buffers);
    });
  }

 private:
  void run_band(int64_t band, BandBuffers<A, Acc>& buffers) const {
    const int64_t image = band / bands_per_image_;
    const int64_t first_line = band % bands_per_image_ * band_lines_;
    const int64_t lines = std::min(band_lines_, g_.in_height - first_line);
    const int64_t elements = lines * g_.in_width * g_.in_channels;
    T* result = result_ + (image * g_.in_height + first_line) * g_.in_width * g_.in_channels;
    Acc* sums;
    if constexpr (std::is_same_v<T, Acc>) {
      sums = result;
    } else {
      buffers.sums.resize(static_cast<size_t>(elements));
      sums = buffers.sums.data();
    }
    zero_bytes(sums, elements * static_cast<int64_t>(sizeof(Acc)));
    add_taps(image, first_line, lines, sums, buffers);
    if constexpr (!std::is_same_v<T, Acc>) {
      row_kernel<T>(kernels()).narrow(sums, result, elements);
    }
  }

  // Output rows whose tap row kh falls into input lines [first, first + lines): [begin, end).
  std::pair<int64_t, int64_t> output_rows(int64_t first, int64_t lines, int64_t kh) const {
    const int64_t shift = g_.pad_top - kh * g_.dilation_h;  // y_in = y_out * stride - shift
    auto rounded_up = [&](int64_t value) {
      return value <= 0 ? 0 : (value + g_.stride_h - 1) / g_.stride_h;
    };
    return {std::min(rounded_up(first + shift), g_.out_height),
            std::min(rounded_up(first + lines + shift), g_.out_height)};
  }

  void add_taps(int64_t image, int64_t first_line, int64_t lines, Acc* sums,
                BandBuffers<A, Acc>& buffers) const {
    const ActiveList& active = *problem_.active;
    auto first_active = [&](int64_t row) {
      return active.lower_bound((image * g_.out_height + row) * g_.out_width);
    };
    const int64_t begin = first_active(output_rows(first_line, lines, g_.kernel_height - 1).first);
    const int64_t end = first_active(output_rows(first_line, lines, 0).second);
    if (begin >= end) return;
    collect(begin, end, first_line, buffers);
    buffers.target.resize(static_cast<size_t>(end - begin));
    for (int64_t kh = 0; kh < g_.kernel_height; ++kh) {
      const auto [row_begin, row_end] = output_rows(first_line, lines, kh);
      const int64_t from = first_active(row_begin) - begin;
      const int64_t to = first_active(row_end) - begin;
      for (int64_t kw = 0; kw < g_.kernel_width && from < to; ++kw) {
        aim(kh, kw, from, to, sums, buffers);
        for (int64_t column = 0; column < g_.groups * plan_.panel_blocks; ++column) {
          multiply(column, kh * g_.kernel_width + kw, from, to, buffers);
        }
      }
    }
  }

  // The active outputs [begin, end), once for all taps.
  void collect(int64_t begin, int64_t end, int64_t first_line, BandBuffers<A, Acc>& buffers) const {
    const auto count = static_cast<size_t>(end - begin);
    buffers.grad.resize(count);
    buffers.origin.resize(count);
    buffers.x.resize(count);
    if (!plan_.is_indirect) copy_rows(begin, end, buffers.copies);
    for (size_t i = 0; i < count; ++i) {
      const int64_t position = problem_.active->positions[begin + static_cast<int64_t>(i)];
      const Receptive field = receptive_field(g_, position);
      buffers.origin[i] = ((field.y - first_line) * g_.in_width + field.x) * g_.in_channels;
      buffers.x[i] = field.x;
      buffers.grad[i] = buffers.copies.data() + i * g_.groups * plan_.depth;
      if constexpr (std::is_same_v<T, A>) {
        if (plan_.is_indirect) buffers.grad[i] = grad_ + position * g_.out_channels;
      }
    }
  }

  // The input rows that tap (kh, kw) of the outputs [from, to) adds to.
  void aim(int64_t kh, int64_t kw, int64_t from, int64_t to, Acc* sums,
           BandBuffers<A, Acc>& buffers) const {
    const int64_t offset = (kh * g_.dilation_h * g_.in_width + kw * g_.dilation_w) * g_.in_channels;
    const int64_t low = -kw * g_.dilation_w;
    const int64_t high = g_.in_width + low;
    for (int64_t i = from; i < to; ++i) {
      const bool is_inside = buffers.x[i] >= low && buffers.x[i] < high;
      buffers.target[i] =
          is_inside ? sums + (buffers.origin[i] + offset) : buffers.discarded.data();
    }
  }

  // dY rows [begin, end) of the active list, converted, each group padded to the panel depth.
  void copy_rows(int64_t begin, int64_t end, std::vector<A>& copies) const {
    const int64_t width = g_.group_out_channels();
    copies.assign(static_cast<size_t>((end - begin) * g_.groups * plan_.depth), A{});
    for (int64_t i = begin; i < end; ++i) {
      const T* from = grad_ + int64_t{problem_.active->positions[i]} * g_.out_channels;
      A* to = copies.data() + (i - begin) * g_.groups * plan_.depth;
      for (int64_t group = 0; group < g_.groups; ++group) {
        convert_row(from + group * width, to + group * plan_.depth, width);
      }
    }
  }

  void multiply(int64_t column, int64_t tap, int64_t from, int64_t to,
                const BandBuffers<A, Acc>& buffers) const {
    const int64_t group = column / plan_.panel_blocks;
    const int64_t first = column % plan_.panel_blocks * plan_.tile_cols;
    const int64_t channels = std::min(plan_.tile_cols, g_.group_in_channels() - first);
    const int64_t channel = group * g_.group_in_channels() + first;
    const int64_t skip = group * (plan_.is_indirect ? g_.group_out_channels() : plan_.depth);
    const A* panel = panels_ + (column * g_.taps() + tap) * plan_.panel_elements();
    for (int64_t i = from; i < to; i += kernel_.tile_rows) {
      const int64_t count = std::min(kernel_.tile_rows, to - i);
      const A* const* rows = buffers.grad.data() + i;
      Acc* const* out = buffers.target.data() + i;
      if (channels == plan_.tile_cols) {
        const int64_t next = std::min(kernel_.tile_rows, to - i - count);
        kernel_.accumulate(rows, skip, count, plan_.depth, panel, out, channel, next);
      } else {
        accumulate_ragged(rows, skip, count, panel, out, channel, channels);
      }
    }
  }

  // The last columns of a group: fewer than a tile, so the sums go through a tile of their own.
  void accumulate_ragged(const A* const* rows, int64_t skip, int64_t count, const A* panel,
                         Acc* const* out, int64_t channel, int64_t channels) const {
    alignas(64) Acc tile[kMaxTileRows * kMaxTileCols] = {};
    Acc* tile_rows[kMaxTileRows] = {};
    for (int64_t m = 0; m < count; ++m) tile_rows[m] = tile + m * plan_.tile_cols;
    kernel_.accumulate(rows, skip, count, plan_.depth, panel, tile_rows, 0, 0);
    for (int64_t m = 0; m < count; ++m) {
      for (int64_t c = 0; c < channels; ++c) {
        out[m][channel + c] += tile[m * plan_.tile_cols + c];
      }
    }
  }

  const GradProblem& problem_;
  const ConvGeometry& g_;
  const GemmPlan& plan_;
  const GemmKernel<A, Acc>& kernel_;
  const A* panels_;
  const T* grad_;
  T* result_;
  int64_t band_lines_;
  int64_t bands_per_image_;
};

}  // namespace

void dgrad_implicit_gemm(const GradProblem& problem) {
  const ConvGeometry& g = problem.geometry;
  const ScalarType storage = problem.result.scalar_type();
  // Depth and columns change places: K = output channels, N = input channels, one tap at a time.
  const GemmPlan plan = plan_gemm(storage, g.group_out_channels(), g.group_in_channels(), 1);
  Scratch scratch(dgrad_panel_bytes(plan, g.groups, g.taps()));
  pack_dgrad(problem.operand, plan, g.groups, scratch.data<void>());
  visit_dtype("perforated_conv2d_dgrad", storage, [&]<class T>() {
    using Acc = AccumulateType<T>;
    visit_compute(plan, [&]<class A>() {
      if constexpr (std::is_same_v<AccumulateType<A>, Acc>) {
        DgradGemm<T, A, Acc>(problem, plan, scratch.data<A>()).run();
      }
    });
  });
}

}  // namespace perfconv::cpu
