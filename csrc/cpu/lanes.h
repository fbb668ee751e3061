// How the channels of a grouped convolution with few channels a group are cut into vectors; the
// kernels that go by it are RowKernel::grouped and its like.
#pragma once

#include <algorithm>
#include <vector>

#include "core/geometry.h"
#include "cpu/kernels/kernel_table.h"

namespace perfconv::cpu {

// Groups of few channels, on one side those of the vectors ("own"), on the other those that each of
// them is summed over ("steps").
struct LaneGroups {
  int64_t groups;
  int64_t own;
  int64_t steps;

  // Whole groups fill a vector, and what they read fills no more than one.
  bool fits(int64_t lanes) const {
    return groups > 1 && steps <= own && lanes % own == 0 && groups * steps >= lanes;
  }
};

inline LaneGroups output_lanes(const ConvGeometry& g) {
  return {g.groups, g.group_out_channels(), g.group_in_channels()};
}

struct KernelColumns {
  int64_t begin;
  int64_t end;
};

// The taps that the pixels of an output row read inside the image.
class RowTaps {
 public:
  explicit RowTaps(const ConvGeometry& g) : g_(g) {
    const int64_t room = g.in_width - 1 - (g.kernel_width - 1) * g.dilation_w + g.pad_left;
    first_inside_ = (g.pad_left + g.stride_w - 1) / g.stride_w;
    end_inside_ = std::min(room < 0 ? 0 : room / g.stride_w + 1, g.out_width);
  }

  // The pixels [first_inside, end_inside) read all columns of the kernel; it may be empty.
  int64_t first_inside() const { return first_inside_; }
  int64_t end_inside() const { return end_inside_; }
  KernelColumns all_columns() const { return {0, g_.kernel_width}; }

  // Those that pixel x of a row reads.
  KernelColumns columns(int64_t x) const {
    const int64_t left = x * g_.stride_w - g_.pad_left;
    KernelColumns inside = all_columns();
    while (inside.begin < inside.end && left + inside.begin * g_.dilation_w < 0) ++inside.begin;
    while (inside.end > inside.begin && left + (inside.end - 1) * g_.dilation_w >= g_.in_width) {
      --inside.end;
    }
    return inside;
  }

  // function(where pixel 0 of output row `line` reads the tap: an offset of the input, the tap).
  template <class Function>
  void visit(int64_t line, KernelColumns columns, const Function& function) const {
    const int64_t image = line / g_.out_height;
    const int64_t top = (line - image * g_.out_height) * g_.stride_h - g_.pad_top;
    for (int64_t kh = 0; kh < g_.kernel_height; ++kh) {
      const int64_t y = top + kh * g_.dilation_h;
      if (y < 0 || y >= g_.in_height) continue;
      const int64_t row = (image * g_.in_height + y) * g_.in_width;
      for (int64_t kw = columns.begin; kw < columns.end; ++kw) {
        function((row + kw * g_.dilation_w - g_.pad_left) * g_.in_channels,
                 kh * g_.kernel_width + kw);
      }
    }
  }

 private:
  const ConvGeometry& g_;
  int64_t first_inside_;
  int64_t end_inside_;
};

// LaneBlocks with the memory that they point to.
template <class Acc>
class LanePlan {
 public:
  // weight(channel, tap, step): of an own channel.
  template <class Weight>
  LanePlan(const LaneGroups& groups, int64_t taps, int64_t lanes, const Weight& weight) {
    const int64_t channels = groups.groups * groups.own;
    const int64_t read_channels = groups.groups * groups.steps;
    blocks_.count = (channels + lanes - 1) / lanes;
    blocks_.steps = groups.steps;
    blocks_.block_weights = taps * groups.steps * lanes;
    weights_.resize(static_cast<size_t>(blocks_.count * blocks_.block_weights));
    auto to = weights_.begin();
    for (int64_t block = 0; block < blocks_.count; ++block) {
      const int64_t own = std::min(block * lanes, channels - lanes);
      const int64_t read = std::min(own / groups.own * groups.steps, read_channels - lanes);
      own_first_.push_back(static_cast<int32_t>(own));
      read_first_.push_back(static_cast<int32_t>(read));
      for (int64_t step = 0; step < groups.steps; ++step) {
        for (int64_t i = 0; i < lanes; ++i) {
          order_.push_back(
              static_cast<int32_t>((own + i) / groups.own * groups.steps + step - read));
        }
      }
      for (int64_t tap = 0; tap < taps; ++tap) {
        for (int64_t step = 0; step < groups.steps; ++step) {
          for (int64_t i = 0; i < lanes; ++i) *to++ = weight(own + i, tap, step);
        }
      }
    }
    blocks_.out_first = own_first_.data();
    blocks_.in_first = read_first_.data();
    blocks_.order = groups.own == 1 && groups.steps == 1 ? nullptr : order_.data();
    blocks_.weight = weights_.data();
  }
  LanePlan(const LanePlan&) = delete;
  LanePlan& operator=(const LanePlan&) = delete;

  const LaneBlocks<Acc>& blocks() const { return blocks_; }

 private:
  LaneBlocks<Acc> blocks_;
  std::vector<int32_t> own_first_;
  std::vector<int32_t> read_first_;
  std::vector<int32_t> order_;
  std::vector<Acc> weights_;
};

}  // namespace perfconv::cpu
