// gated_block, and into its shortcut in place, on the CPU: decision, compaction, halos and the
// stages of a residual block in one call.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>
#include <vector>

#include "core/gated_block_arguments.h"
#include "cpu/conv.h"
#include "cpu/gate.h"
#include "cpu/images.h"

namespace perfconv::cpu {
namespace {

// One call: tensors and geometry checked, names resolved to enums.
struct Block {
  const BlockTensors& tensors;
  const std::vector<Tensor>& packed_weights;
  std::vector<ConvGeometry> stages;
  Activation activation;      // between the stages
  Activation sum_activation;  // of the sum
};

Block checked(const char* op, const BlockTensors& tensors,
              const std::vector<Tensor>& packed_weights, const BlockNumbers& numbers,
              const std::string& activation, const std::string& sum_activation) {
  return {.tensors = tensors,
          .packed_weights = packed_weights,
          .stages = check_gated_block(op, tensors, packed_weights, numbers),
          .activation = parse_activation(op, activation),
          .sum_activation = parse_activation(op, sum_activation)};
}

// The gate's decision.
void decide_mask(const Block& block, const Tensor& rows, const Tensor& decided) {
  const BlockTensors& t = block.tensors;
  ConvGeometry g = block.stages.back();
  const std::vector<int64_t> steps = block_stride(block.stages);
  g.in_height = t.input.size(2);
  g.in_width = t.input.size(3);
  g.stride_h = steps[0];
  g.stride_w = steps[1];
  decide(rows, *t.gate_weight, t.gate_bias, g, mutable_data<uint8_t>(decided));
}

// The pixels that each stage computes: those of the mask, and before them those that the next stage
// reads.
std::vector<ActiveList> stage_pixels(const std::vector<ConvGeometry>& stages, const uint8_t* mask,
                                     int64_t images) {
  std::vector<ActiveList> lists(stages.size());
  std::vector<uint8_t> halo;
  for (size_t i = stages.size(); i-- > 0;) {
    const ConvGeometry& g = stages[i];
    lists[i] = compact(mask, images, g.out_height * g.out_width, g.batch);
    if (i == 0 || is_pointwise(g)) continue;
    std::vector<uint8_t> reads(static_cast<size_t>(images * g.in_height * g.in_width));
    expand(mask, images, g, reads.data());
    halo.swap(reads);
    mask = halo.data();
  }
  return lists;
}

ForwardProblem stage_problem(const Block& block, size_t stage, const Tensor& input,
                             const ActiveList& active) {
  ForwardProblem problem{.geometry = block.stages[stage],
                         .input = input,
                         .weight = block.tensors.weights[stage],
                         .packed = {},
                         .bias = in_order(block.tensors.biases[stage]),
                         .residual = {},
                         .base = {},
                         .fill = Fill::kNone,
                         .activation = block.activation,
                         .base_activation = Activation::kNone,
                         .active = &active,
                         .output = {}};
  if (!block.packed_weights.empty()) problem.packed = block.packed_weights[stage];
  return problem;
}

// The block's output in channels_last memory: `target`, which is the shortcut then, or a new image.
// decided: where the gate's mask goes, if a gate decides.
Tensor run(const Block& block, const Tensor& decided, const OptionalTensor& target) {
  const BlockTensors& t = block.tensors;
  const Tensor rows = to_channels_last(t.input);
  const Tensor shortcut = t.shortcut ? to_channels_last(*t.shortcut) : rows;
  if (!t.mask) decide_mask(block, rows, decided);
  const Tensor mask = t.mask ? in_order(*t.mask) : decided;
  const std::vector<ActiveList> lists =
      stage_pixels(block.stages, data<uint8_t>(mask), mask.size(0));
  Tensor features = rows;
  const size_t last = block.stages.size() - 1;
  for (size_t i = 0; i < last; ++i) {
    features = convolve(stage_problem(block, i, features, lists[i]), ConvAlgorithm::kAuto, true);
  }
  ForwardProblem problem = stage_problem(block, last, features, lists[last]);
  const bool activates_shortcut = t.shortcut.has_value();
  problem.activation = block.sum_activation;
  problem.residual = shortcut;
  problem.base = shortcut;
  problem.base_activation = activates_shortcut ? block.sum_activation : Activation::kNone;
  problem.fill = target && !activates_shortcut ? Fill::kNone : Fill::kPassthrough;
  if (target) problem.output = *target;
  return convolve(problem, ConvAlgorithm::kAuto, true);
}

// A mask for the gate to decide, or one without elements.
Tensor empty_decision(const Block& block) {
  const ConvGeometry& g = block.stages.back();
  const std::vector<int64_t> shape{g.batch, 1, g.out_height, g.out_width};
  return torch::stable::new_empty(
      block.tensors.input, block.tensors.mask ? std::vector<int64_t>{0} : shape, ScalarType::Bool);
}

std::tuple<Tensor, Tensor> gated_block(
    const Tensor& input, const OptionalTensor& shortcut, const OptionalTensor& mask,
    const OptionalTensor& gate_weight, const OptionalTensor& gate_bias,
    const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
    const std::vector<Tensor>& packed_weights, const std::vector<int64_t>& stride,
    const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
    const std::vector<int64_t>& groups, const std::string& activation,
    const std::string& sum_activation, bool /*allow_tf32*/) {
  constexpr const char* kOp = "gated_block";
  const BlockTensors tensors{input, shortcut, mask, gate_weight, gate_bias, weights, biases};
  const Block block = checked(kOp, tensors, packed_weights, {stride, padding, dilation, groups},
                              activation, sum_activation);
  const Tensor decided = empty_decision(block);
  return {in_layout(run(block, decided, {}), is_channels_last(input)), decided};
}

Tensor gated_block_into(const Tensor& base, const OptionalTensor& input, const OptionalTensor& mask,
                        const OptionalTensor& gate_weight, const OptionalTensor& gate_bias,
                        const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
                        const std::vector<Tensor>& packed_weights,
                        const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                        const std::vector<int64_t>& dilation, const std::vector<int64_t>& groups,
                        const std::string& activation, const std::string& sum_activation,
                        bool /*allow_tf32*/) {
  constexpr const char* kOp = "gated_block_into";
  check_rank(kOp, "base", "(N, C_out, H_out, W_out)", base, 4);
  const Tensor rows = to_channels_last(base);
  const OptionalTensor shortcut = input ? OptionalTensor(rows) : std::nullopt;
  const BlockTensors tensors{
      input ? *input : rows, shortcut, mask, gate_weight, gate_bias, weights, biases};
  const Block block = checked(kOp, tensors, packed_weights, {stride, padding, dilation, groups},
                              activation, sum_activation);
  check_overwritten(kOp, base, tensors);
  const Tensor decided = empty_decision(block);
  run(block, decided, rows);
  if (rows.const_data_ptr() != base.const_data_ptr()) {
    Tensor target = base;
    torch::stable::copy_(target, rows);
  }
  return decided;
}

}  // namespace
}  // namespace perfconv::cpu

STABLE_TORCH_LIBRARY_IMPL(perfconv, CPU, m) {
  m.impl("gated_block", TORCH_BOX(&perfconv::cpu::gated_block));
  m.impl("gated_block_into", TORCH_BOX(&perfconv::cpu::gated_block_into));
}
