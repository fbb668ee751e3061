// How the implicit GEMM reaches the rows of its left operand: the input pixels of a block of active
// outputs, either in place through pointers or copied and converted into a small block.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/conv.h"
#include "cpu/images.h"
#include "cpu/kernels/kernel_table.h"
#include "cpu/pack.h"

namespace perfconv::cpu {

// `bytes` bytes from each of `count` addresses.
inline NextLines gathered(const void* const* rows, int64_t count, int64_t bytes) {
  if (count == 0 || bytes == 0) return {};
  const char* first = static_cast<const char*>(rows[0]);
  return {
      .begin = first, .end = first + bytes, .rows = rows + 1, .count = count - 1, .bytes = bytes};
}

// Row pointers of consecutive active pixels in the order GemmKernel::multiply reads them:
// [tile][tap][tile_rows]. Taps outside the image point to a row of zeros.
template <class A>
class TapPointers {
 public:
  TapPointers(const ConvGeometry& g, const A* input, const A* zeros, int64_t tile_rows)
      : g_(g), input_(input), zeros_(zeros), tile_rows_(tile_rows) {
    for (int64_t kh = 0; kh < g.kernel_height; ++kh) {
      for (int64_t kw = 0; kw < g.kernel_width; ++kw) {
        offsets_.push_back((kh * g.dilation_h * g.in_width + kw * g.dilation_w) * g.in_channels);
      }
    }
  }

  // The pixels positions[0 .. count); the rows start at input channel `channel`.
  void fill(const int32_t* positions, int64_t count, int64_t channel) {
    count_ = count;
    const int64_t taps = g_.taps();
    const int64_t tiles = (count + tile_rows_ - 1) / tile_rows_;
    pointers_.resize(static_cast<size_t>(tiles * taps * tile_rows_));
    for (int64_t i = 0; i < count; ++i) {
      const A** to = pointers_.data() + i / tile_rows_ * taps * tile_rows_ + i % tile_rows_;
      fill_pixel(field_of(positions[i]), channel, to);
    }
  }

  const A* const* tile(int64_t index) const {
    return pointers_.data() + index * g_.taps() * tile_rows_;
  }

  // What the tile after this one reads for the first time: the pixels under its last tap. With one
  // tap these are read once for all, and fetched one by one; else the stretch of memory that they
  // lie in, a hint: at the border it may be any, of which nothing is read.
  NextLines after(int64_t index) const {
    const int64_t taps = g_.taps();
    const int64_t left = std::min(count_ - (index + 1) * tile_rows_, tile_rows_);
    if (taps == 1 && left > 0) {
      return gathered(reinterpret_cast<const void* const*>(tile(index + 1)), left,
                      g_.group_in_channels() * static_cast<int64_t>(sizeof(A)));
    }
    const int64_t step = taps * tile_rows_;
    if ((index + 3) * step > static_cast<int64_t>(pointers_.size())) return {};
    const A* const* last = tile(index + 1) + step - tile_rows_;
    return {.begin = reinterpret_cast<const char*>(last[0]),
            .end = reinterpret_cast<const char*>(last[step])};
  }

 private:
  // receptive_field, without its divisions while consecutive pixels stay in one row.
  Receptive field_of(int64_t position) {
    if (position < row_begin_ || position >= row_begin_ + g_.out_width) {
      row_begin_ = position / g_.out_width * g_.out_width;
      row_field_ = receptive_field(g_, row_begin_);
    }
    return {.image = row_field_.image,
            .y = row_field_.y,
            .x = row_field_.x + (position - row_begin_) * g_.stride_w};
  }

  void fill_pixel(const Receptive& field, int64_t channel, const A** to) const {
    const int64_t last_y = field.y + (g_.kernel_height - 1) * g_.dilation_h;
    const int64_t last_x = field.x + (g_.kernel_width - 1) * g_.dilation_w;
    const A* first = input_ + channel;
    const int64_t origin =
        ((field.image * g_.in_height + field.y) * g_.in_width + field.x) * g_.in_channels;
    const int64_t taps = g_.taps();
    if (field.y >= 0 && field.x >= 0 && last_y < g_.in_height && last_x < g_.in_width) {
      for (int64_t t = 0; t < taps; ++t) to[t * tile_rows_] = first + (origin + offsets_[t]);
      return;
    }
    for (int64_t kh = 0; kh < g_.kernel_height; ++kh) {
      const int64_t y = field.y + kh * g_.dilation_h;
      for (int64_t kw = 0; kw < g_.kernel_width; ++kw) {
        const int64_t x = field.x + kw * g_.dilation_w;
        const bool is_inside = y >= 0 && y < g_.in_height && x >= 0 && x < g_.in_width;
        const int64_t t = kh * g_.kernel_width + kw;
        to[t * tile_rows_] = is_inside ? first + (origin + offsets_[t]) : zeros_;
      }
    }
  }

  const ConvGeometry& g_;
  const A* input_;
  const A* zeros_;
  int64_t tile_rows_;
  int64_t count_ = 0;
  int64_t row_begin_ = INT64_MIN / 2;  // flat position of the first pixel of the row seen last
  Receptive row_field_{};
  std::vector<int64_t> offsets_;
  std::vector<const A*> pointers_;
};

// Copies row (channels of T) to A, through the instruction set's widening loop where that fits.
template <class T, class A>
void convert_row(const T* from, A* to, int64_t channels) {
  if constexpr (std::is_same_v<T, A>) {
    std::copy_n(from, channels, to);
  } else if constexpr (std::is_same_v<A, AccumulateType<T>>) {
    row_kernel<T>(kernels()).widen(from, to, channels);
  } else if constexpr (std::is_same_v<T, AccumulateType<A>>) {
    row_kernel<A>(kernels()).narrow(from, to, channels);
  } else {
    for (int64_t c = 0; c < channels; ++c) to[c] = from_float<A>(to_float(from[c]));
  }
}

// Whole input lines converted to A, with zeros for the padding beside them, and one line of zeros
// for that above and below: the taps of a kernel row are neighbours in memory and count as one tap
// of kernel_width times the channels. For few channels: the image is small beside the
// multiplications, and no pixel is copied once a tap.
template <class T, class A>
class LineRows {
 public:
  // Of an input that the active pixels read often enough to be worth the copy, with less padding
  // than pixels: that of strided taps may be too large for memory.
  static bool takes(const ConvGeometry& g, int64_t active, int64_t depth_step) {
    return g.groups == 1 && g.dilation_w == 1 && g.kernel_width > 1 &&
           g.kernel_width * g.in_channels % depth_step == 0 &&
           g.pad_left + g.pad_right <= g.in_width && 2 * active * g.taps() > g.in_pixels();
  }
  static int64_t elements(const ConvGeometry& g) {
    return (g.batch * g.in_height + 1) * line_elements(g);
  }

  static void copy(const ConvGeometry& g, const T* input, A* lines) {
    const int64_t width = line_elements(g);
    const int64_t left = g.pad_left * g.in_channels;
    const int64_t middle = g.in_width * g.in_channels;
    parallel_rows(g.batch * g.in_height + 1, width / 8, [&](int64_t begin, int64_t end) {
      for (int64_t line = begin; line < end; ++line) {
        A* to = lines + line * width;
        const bool is_zero = line == g.batch * g.in_height;
        std::fill_n(to, is_zero ? width : left, A{});
        if (is_zero) continue;
        convert_row(input + line * middle, to + left, middle);
        std::fill(to + left + middle, to + width, A{});
      }
    });
  }

  LineRows(const ConvGeometry& g, const A* lines, int64_t tile_rows)
      : g_(g), lines_(lines), tile_rows_(tile_rows) {}

  void fill(const int32_t* positions, int64_t count, int64_t /*channel*/) {
    const int64_t taps = g_.kernel_height;
    const int64_t tiles = (count + tile_rows_ - 1) / tile_rows_;
    pointers_.resize(static_cast<size_t>(tiles * taps * tile_rows_));
    std::vector<const A*> line(static_cast<size_t>(taps));
    int64_t row_begin = -g_.out_width;  // flat position of the first pixel of the row at hand
    for (int64_t i = 0; i < count; ++i) {
      if (positions[i] >= row_begin + g_.out_width) {
        row_begin = positions[i] / g_.out_width * g_.out_width;
        const Receptive field = receptive_field(g_, row_begin);
        for (int64_t kh = 0; kh < taps; ++kh) {
          const int64_t y = field.y + kh * g_.dilation_h;
          const bool is_inside = y >= 0 && y < g_.in_height;
          const int64_t row = is_inside ? field.image * g_.in_height + y : g_.batch * g_.in_height;
          line[kh] = lines_ + row * line_elements(g_);
        }
      }
      const int64_t x = (positions[i] - row_begin) * g_.stride_w * g_.in_channels;
      const A** to = pointers_.data() + i / tile_rows_ * taps * tile_rows_ + i % tile_rows_;
      for (int64_t kh = 0; kh < taps; ++kh) to[kh * tile_rows_] = line[kh] + x;
    }
  }

  const A* const* tile(int64_t index) const {
    return pointers_.data() + index * g_.kernel_height * tile_rows_;
  }
  NextLines after(int64_t /*index*/) const { return {}; }

 private:
  static int64_t line_elements(const ConvGeometry& g) {
    return (g.pad_left + g.in_width + g.pad_right) * g.in_channels;
  }

  const ConvGeometry& g_;
  const A* lines_;
  int64_t tile_rows_;
  std::vector<const A*> pointers_;
};

// The receptive fields of consecutive active pixels as rows of `depth` elements of A, converted:
// for few channels, odd depths and dtypes without multiplications of their own. Small enough for
// the second-level cache; not an im2col matrix.
template <class T, class A>
class PatchRows {
 public:
  PatchRows(const ConvGeometry& g, const T* input, int64_t depth, int64_t tile_rows)
      : g_(g), input_(input), depth_(depth), tile_rows_(tile_rows) {}

  void fill(const int32_t* positions, int64_t count, int64_t channel) {
    const int64_t channels = g_.group_in_channels();
    rows_.assign(static_cast<size_t>(count * depth_), A{});
    pointers_.resize(static_cast<size_t>((count + tile_rows_ - 1) / tile_rows_ * tile_rows_));
    for (int64_t i = 0; i < count; ++i) {
      A* row = rows_.data() + i * depth_;
      pointers_[static_cast<size_t>(i)] = row;
      const Receptive field = receptive_field(g_, positions[i]);
      for (int64_t kh = 0; kh < g_.kernel_height; ++kh) {
        const int64_t y = field.y + kh * g_.dilation_h;
        if (y < 0 || y >= g_.in_height) continue;
        const T* line = input_ + (field.image * g_.in_height + y) * g_.in_width * g_.in_channels;
        for (int64_t kw = 0; kw < g_.kernel_width; ++kw) {
          const int64_t x = field.x + kw * g_.dilation_w;
          if (x < 0 || x >= g_.in_width) continue;
          convert_row(line + x * g_.in_channels + channel,
                      row + (kh * g_.kernel_width + kw) * channels, channels);
        }
      }
    }
  }

  const A* const* tile(int64_t index) const { return pointers_.data() + index * tile_rows_; }
  NextLines after(int64_t /*index*/) const { return {}; }

 private:
  const ConvGeometry& g_;
  const T* input_;
  int64_t depth_;
  int64_t tile_rows_;
  std::vector<A> rows_;
  std::vector<const A*> pointers_;
};

}  // namespace perfconv::cpu
