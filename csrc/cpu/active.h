// The active pixels of a mask as a list of flat output positions, ascending.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <memory>
#include <tuple>

#include "core/geometry.h"

namespace perfconv::cpu {

struct ActiveList {
  std::unique_ptr<int32_t[]> positions;  // (count,), flat over (N, H_out, W_out), ascending
  int64_t count = 0;

  // Index of the first entry at or after a flat position.
  int64_t lower_bound(int64_t position) const;
};

// mask (N or 1, 1, H, W) bool, already checked; a mask of one image serves all of batch.
ActiveList compact(const torch::stable::Tensor& mask, int64_t batch);

// The same of bytes: masks of `images` images, of `pixels` pixels each.
ActiveList compact(const uint8_t* mask, int64_t images, int64_t pixels, int64_t batch);

// Marks in `to` (0 before, the input's size) the input pixels that active outputs of `images`
// images read.
void expand(const uint8_t* mask, int64_t images, const ConvGeometry& g, uint8_t* to);

// The results of compact_mask: active_idx (capacity,), count (1,), image_counts (batch,).
std::tuple<torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor> list_tensors(
    const ActiveList& list, int64_t batch, int64_t capacity);

}  // namespace perfconv::cpu
