// The arguments of the gated block's operators, checked into the geometry of each stage.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/conv_arguments.h"

namespace perfconv {

struct BlockTensors {
  const Tensor& input;
  const OptionalTensor& shortcut;  // without one it is the input
  const OptionalTensor& mask;      // or a gate that decides
  const OptionalTensor& gate_weight;
  const OptionalTensor& gate_bias;
  const std::vector<Tensor>& weights;
  const std::vector<Tensor>& biases;
};

// stride, padding and dilation: (h, w) of the first stage, of the second, and so on.
struct BlockNumbers {
  const std::vector<int64_t>& stride;
  const std::vector<int64_t>& padding;
  const std::vector<int64_t>& dilation;
  const std::vector<int64_t>& groups;
};

inline std::vector<int64_t> output_shape(const ConvGeometry& g) {
  return {g.batch, g.out_channels, g.out_height, g.out_width};
}

// Whether a stage computes each pixel from the same one of its input.
inline bool is_pointwise(const ConvGeometry& g) {
  return g.taps() == 1 && g.stride_h == 1 && g.stride_w == 1 && g.pad_top == 0 && g.pad_left == 0;
}

// Input pixels per output pixel, (h, w).
inline std::vector<int64_t> block_stride(const std::vector<ConvGeometry>& stages) {
  std::vector<int64_t> steps{1, 1};
  for (const ConvGeometry& g : stages) {
    steps[0] *= g.stride_h;
    steps[1] *= g.stride_w;
  }
  return steps;
}

inline std::vector<ConvGeometry> check_stages(const char* op, const BlockTensors& t,
                                              const BlockNumbers& numbers) {
  const size_t count = t.weights.size();
  if (count < 2 || t.biases.size() != count || numbers.groups.size() != count) {
    fail(op, "weights, biases and groups must be lists of one length, 2 or more, got ", count, ", ",
         t.biases.size(), " and ", numbers.groups.size(), ". Give one of each for each stage.");
  }
  check_length(op, "stride", numbers.stride, 2 * count);
  check_length(op, "padding", numbers.padding, 2 * count);
  check_length(op, "dilation", numbers.dilation, 2 * count);
  const auto pair = [](const std::vector<int64_t>& values, size_t stage) {
    return std::vector<int64_t>{values[2 * stage], values[2 * stage + 1]};
  };
  std::vector<ConvGeometry> stages;
  std::vector<int64_t> shape = size_vector(t.input);
  for (size_t i = 0; i < count; ++i) {
    check_rank(op, "each weight", "(C_out, C_in / groups, K_h, K_w)", t.weights[i], 4);
    check_like(op, "each weight", t.weights[i], "input", t.input);
    check_like(op, "each bias", t.biases[i], "input", t.input);
    const std::vector<int64_t> sides = pair(numbers.padding, i);
    stages.push_back(make_geometry(op, shape, size_vector(t.weights[i]), pair(numbers.stride, i),
                                   {sides[0], sides[0], sides[1], sides[1]},
                                   pair(numbers.dilation, i), numbers.groups[i]));
    check_shape(op, "each bias", "(C_out,)", t.biases[i], {stages.back().out_channels});
    shape = output_shape(stages.back());
  }
  return stages;
}

inline void check_block_gate(const char* op, const BlockTensors& t,
                             const std::vector<ConvGeometry>& stages) {
  check_gate(op, t.input, *t.gate_weight, t.gate_bias, "gate_");
  const std::vector<int64_t> steps = block_stride(stages);
  const int64_t height = (t.input.size(2) - 1) / steps[0] + 1;
  const int64_t width = (t.input.size(3) - 1) / steps[1] + 1;
  if (height != stages.back().out_height || width != stages.back().out_width) {
    fail(op, "a gate decides at every stride-th pixel, (", height, ", ", width,
         ") of this input, got a branch whose output is (", stages.back().out_height, ", ",
         stages.back().out_width, "). Give a mask instead.");
  }
}

// The geometry of each stage.
inline std::vector<ConvGeometry> check_gated_block(const char* op, const BlockTensors& t,
                                                   const std::vector<Tensor>& packed_weights,
                                                   const BlockNumbers& numbers) {
  check_floating(op, "input", t.input);
  check_rank(op, "input", "(N, C_in, H, W)", t.input, 4);
  if (!packed_weights.empty() && packed_weights.size() != t.weights.size()) {
    fail(op, "packed_weights must be as many as weights, ", t.weights.size(), ", or none, got ",
         packed_weights.size(), ". Leave out what is not packed: all of them.");
  }
  std::vector<ConvGeometry> stages = check_stages(op, t, numbers);
  const ConvGeometry& last = stages.back();
  if (t.shortcut) check_like(op, "shortcut", *t.shortcut, "input", t.input);
  check_shape(op, t.shortcut ? "shortcut" : "input, which is the shortcut,",
              "(N, C_out, H_out, W_out)", t.shortcut ? *t.shortcut : t.input, output_shape(last));
  if (t.mask.has_value() == t.gate_weight.has_value()) {
    fail(op, "either mask or gate_weight must be given, got ", t.mask ? "both" : "neither",
         ". Give the mask, or the gate that decides.");
  }
  if (t.mask) {
    check_mask(op, *t.mask, t.input);
    check_mask_shape(op, *t.mask, last.batch, last.out_height, last.out_width);
  } else {
    check_block_gate(op, t, stages);
  }
  return stages;
}

// base is overwritten: no other tensor lies in it. It is the input too where t.shortcut is missing.
inline void check_overwritten(const char* op, const Tensor& base, const BlockTensors& t) {
  const MemoryRange written(base);
  const auto check = [&](const Tensor& tensor) {
    if (!written.overlaps(MemoryRange(tensor))) return;
    fail(op,
         "base must not share memory with what is read while it is written, got a tensor that "
         "does. Give it a copy: base.clone().");
  };
  if (t.shortcut) check(t.input);
  if (t.mask) check(*t.mask);
  for (const Tensor& weight : t.weights) check(weight);
  for (const Tensor& bias : t.biases) check(bias);
}

}  // namespace perfconv
