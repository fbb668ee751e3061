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
