// What inactive output pixels hold: zero, the base image, the nearest active pixel, or whatever.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <limits>

#include "core/conv_arguments.h"
#include "cpu/conv.h"
#include "cpu/images.h"
#include "cpu/kernels/kernel_table.h"

namespace perfconv::cpu {
namespace {

// Calls function(begin, end) for the runs of inactive pixels in the flat range [begin, end).
template <class Function>
void visit_gaps(const ActiveList& active, int64_t begin, int64_t end, Function function) {
  int64_t next = begin;
  for (int64_t i = active.lower_bound(begin); i < active.count; ++i) {
    const int64_t position = active.positions[i];
    if (position >= end) break;
    if (position > next) function(next, position);
    next = position + 1;
  }
  if (next < end) function(next, end);
}

// Nearest active pixel of every pixel of one image, as flat positions in the image; -1 if none.
//
// Columns first: the nearest active pixel in the same column (of two at the same distance the
// upper one, which has the lower flat position). Then, for every pixel, columns outwards until the
// horizontal distance alone is larger than the best one found.
class NearestMap {
 public:
  NearestMap(const int32_t* positions, int64_t count, int64_t offset, int64_t height, int64_t width)
      : height_(height), width_(width), column_row_(static_cast<size_t>(height * width), -1) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t flat = positions[i] - offset;
      column_row_[static_cast<size_t>(flat)] = static_cast<int32_t>(flat / width);
    }
    for (int64_t y = 1; y < height; ++y) {  // downwards: the last active row at or above y
      for (int64_t x = 0; x < width; ++x) {
        if (row_at(y, x) < 0) set_row(y, x, row_at(y - 1, x));
      }
    }
    for (int64_t y = height - 2; y >= 0; --y) {  // upwards: the next one below, if nearer
      for (int64_t x = 0; x < width; ++x) {
        const int32_t below = row_at(y + 1, x);
        if (below <= y) continue;
        const int32_t above = row_at(y, x);
        if (above < 0 || below - y < y - above) set_row(y, x, below);
      }
    }
    for (int64_t x = 0; x < width; ++x) {
      if (height > 0 && row_at(0, x) >= 0) columns_.push_back(x);
    }
  }

  int64_t source(int64_t y, int64_t x) const {
    int64_t best = -1;
    int64_t best_distance = std::numeric_limits<int64_t>::max();
    auto consider = [&](int64_t column) {
      const int64_t row = row_at(y, column);
      const int64_t distance = (row - y) * (row - y) + (column - x) * (column - x);
      const int64_t flat = row * width_ + column;
      if (distance < best_distance || (distance == best_distance && flat < best)) {
        best = flat;
        best_distance = distance;
      }
    };
    const auto middle = std::lower_bound(columns_.begin(), columns_.end(), x);
    auto right = middle;
    auto left = middle;
    while (true) {
      const int64_t to_right =
          right != columns_.end() ? *right - x : std::numeric_limits<int32_t>::max();
      const int64_t to_left =
          left != columns_.begin() ? x - *(left - 1) : std::numeric_limits<int32_t>::max();
      const int64_t step = std::min(to_right, to_left);
      if (step == std::numeric_limits<int32_t>::max() || step * step > best_distance) return best;
      if (to_left <= to_right) {
        consider(*--left);
      } else {
        consider(*right++);
      }
    }
  }

 private:
  int32_t row_at(int64_t y, int64_t x) const {
    return column_row_[static_cast<size_t>(y * width_ + x)];
  }
  void set_row(int64_t y, int64_t x, int32_t row) {
    column_row_[static_cast<size_t>(y * width_ + x)] = row;
  }

  int64_t height_;
  int64_t width_;
  std::vector<int32_t> column_row_;  // row of the nearest active pixel in the column
  std::vector<int64_t> columns_;     // columns that hold an active pixel, ascending
};

// The nearest active pixels of one image, as flat positions in the batch.
class ImageSources {
 public:
  ImageSources(const ActiveList& active, int64_t image, int64_t height, int64_t width)
      : active_(active),
        first_(image * height * width),
        width_(width),
        map_(make_map(active, first_, height, width)) {}

  // Calls function(inactive position, source position or -1) for pixels [begin, end) of the image.
  template <class Function>
  void visit(int64_t begin, int64_t end, const Function& function) const {
    visit_gaps(active_, first_ + begin, first_ + end, [&](int64_t from, int64_t to) {
      for (int64_t position = from; position < to; ++position) {
        const int64_t flat = position - first_;
        const int64_t source = map_.source(flat / width_, flat % width_);
        function(position, source < 0 ? -1 : first_ + source);
      }
    });
  }

 private:
  static NearestMap make_map(const ActiveList& active, int64_t first, int64_t height,
                             int64_t width) {
    const int64_t begin = active.lower_bound(first);
    const int64_t end = active.lower_bound(first + height * width);
    return {active.positions.get() + begin, end - begin, first, height, width};
  }

  const ActiveList& active_;
  int64_t first_;
  int64_t width_;
  NearestMap map_;
};

Tensor nearest_fill(const Tensor& values, const Tensor& mask) {
  check_nearest("nearest_fill", "values", values, mask);
  const bool channels_last = is_channels_last(values);
  const ActiveList active = compact(mask, values.size(0));
  const Tensor rows = to_channels_last(values);
  const Tensor result = empty_image(values, size_vector(values), true);
  copy_bytes(result.mutable_data_ptr(), rows.const_data_ptr(),
             values.numel() * values.element_size());
  fill_nearest(result, active);
  return in_layout(result, channels_last);
}

// Gradient of nearest_fill: an active pixel gets its own gradient and those of the pixels it was
// copied to, added in ascending order; inactive pixels get 0.
Tensor nearest_fill_grad(const Tensor& grad, const Tensor& mask) {
  constexpr const char* kOp = "nearest_fill_grad";
  check_nearest(kOp, "grad", grad, mask);
  const bool channels_last = is_channels_last(grad);
  const ActiveList active = compact(mask, grad.size(0));
  const Tensor rows = to_channels_last(grad);
  const Tensor result = empty_image(grad, size_vector(grad), true);
  const int64_t channels = grad.size(1);
  visit_dtype(kOp, grad.scalar_type(), [&]<class T>() {
    using Acc = AccumulateType<T>;
    const T* from = data<T>(rows);
    const RowKernel<T, Acc>& row = row_kernel<T>(kernels());
    std::vector<Acc> sums(static_cast<size_t>(grad.numel()), Acc(0));
    for (int64_t i = 0; i < active.count; ++i) {
      const int64_t offset = int64_t{active.positions[i]} * channels;
      row.widen(from + offset, sums.data() + offset, channels);
    }
    const int64_t pixels = grad.size(2) * grad.size(3);
    torch::stable::parallel_for(0, grad.size(0), 1, [&](int64_t begin, int64_t end) {
      for (int64_t image = begin; image < end; ++image) {
        const ImageSources sources(active, image, grad.size(2), grad.size(3));
        sources.visit(0, pixels, [&](int64_t position, int64_t source) {
          if (source < 0) return;
          row.add(from + position * channels, sums.data() + source * channels, channels);
        });
      }
    });
    row.narrow(sums.data(), mutable_data<T>(result), grad.numel());
  });
  return in_layout(result, channels_last);
}

}  // namespace

void fill_inactive(const ForwardProblem& problem, int64_t begin, int64_t end) {
  if (leaves_inactive(problem.fill)) return;
  const int64_t channels = problem.geometry.out_channels;
  visit_dtype("perforated_conv2d", problem.output.scalar_type(), [&]<class T>() {
    T* out = mutable_data<T>(problem.output);
    visit_gaps(*problem.active, begin, end, [&](int64_t from, int64_t to) {
      const int64_t count = (to - from) * channels;
      if (problem.fill == Fill::kZero) {
        zero_bytes(out + from * channels, count * static_cast<int64_t>(sizeof(T)));
      } else if (problem.base_activation == Activation::kNone) {
        std::copy_n(data<T>(*problem.base) + from * channels, count, out + from * channels);
      } else {
        row_kernel<T>(kernels()).activate(data<T>(*problem.base) + from * channels,
                                          problem.base_activation, out + from * channels, count);
      }
    });
  });
}

// One long run is zeroed without reading its cache lines first (KERNELS.md K-014).
void fill_before(const ForwardProblem& problem, int64_t begin, int64_t end) {
  if (problem.fill != Fill::kZero) return fill_inactive(problem, begin, end);
  const int64_t bytes = problem.geometry.out_channels * problem.output.element_size();
  char* out = static_cast<char*>(problem.output.mutable_data_ptr());
  zero_bytes(out + begin * bytes, (end - begin) * bytes);
}

void fill_inactive(const ForwardProblem& problem) {
  parallel_rows(problem.geometry.out_pixels(), problem.geometry.out_channels,
                [&](int64_t begin, int64_t end) { fill_inactive(problem, begin, end); });
}

void fill_nearest(const Tensor& output, const ActiveList& active) {
  const int64_t channels = output.size(1);
  visit_dtype("nearest_fill", output.scalar_type(), [&]<class T>() {
    T* out = mutable_data<T>(output);
    for (int64_t image = 0; image < output.size(0); ++image) {
      const ImageSources sources(active, image, output.size(2), output.size(3));
      const int64_t pixels = output.size(2) * output.size(3);
      parallel_rows(pixels, 16 + channels / 16, [&](int64_t begin, int64_t end) {
        sources.visit(begin, end, [&](int64_t position, int64_t source) {
          T* to = out + position * channels;
          if (source < 0) {
            std::fill_n(to, channels, T{});
          } else {
            std::copy_n(out + source * channels, channels, to);
          }
        });
      });
    }
  });
}

}  // namespace perfconv::cpu

STABLE_TORCH_LIBRARY_IMPL(perfconv, CPU, m) {
  m.impl("nearest_fill", TORCH_BOX(&perfconv::cpu::nearest_fill));
  m.impl("nearest_fill_grad", TORCH_BOX(&perfconv::cpu::nearest_fill_grad));
}
