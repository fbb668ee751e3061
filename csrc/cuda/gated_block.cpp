// gated_block, and into its shortcut in place, on CUDA: the operators of its steps, one after
// another, without a way through the dispatcher between them.
#include <array>
#include <tuple>

#include "core/gated_block_arguments.h"
#include "core/registration.h"
#include "cuda/images.h"
#include "cuda/operators.h"

namespace perfconv::cuda {
namespace {

struct Block {
  const BlockTensors& tensors;
  const std::vector<Tensor>& packed_weights;
  std::vector<ConvGeometry> stages;
  const std::string& activation;
  const std::string& sum_activation;
  bool allow_tf32;
};

// The pixels of a stage; the list where it is known.
struct Pixels {
  Tensor mask;
  OptionalTensor active_idx;
  OptionalTensor count;
};

Tensor every(const Tensor& image, int64_t dim, int64_t step) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  if (step == 1) return image;
  const std::optional<int64_t> whole;
  std::array<StableIValue, 5> stack{from(image), from(dim), from(whole), from(whole), from(step)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::slice", "Tensor", stack.data(), TORCH_ABI_VERSION));
  return to<Tensor>(stack[0]);
}

// The active pixels of the block.
Pixels block_pixels(const Block& block) {
  const BlockTensors& t = block.tensors;
  if (t.mask) {
    // A mask of one image for all of them is repeated where it is compacted.
    if (t.mask->size(0) != block.stages.back().batch) {
      return {.mask = *t.mask, .active_idx = {}, .count = {}};
    }
    const auto [active_idx, count, image_counts] = compact_mask(*t.mask);
    return {.mask = *t.mask, .active_idx = active_idx, .count = count};
  }
  const std::vector<int64_t> steps = block_stride(block.stages);
  const Tensor seen = every(every(t.input, 2, steps[0]), 3, steps[1]);
  const auto [soft, mask, active_idx, count, image_counts] =
      gate_mask(seen, *t.gate_weight, t.gate_bias, false);
  return {.mask = mask, .active_idx = active_idx, .count = count};
}

std::vector<int64_t> padding_of(const ConvGeometry& g) {
  return {g.pad_top, g.pad_bottom, g.pad_left, g.pad_right};
}

std::vector<Pixels> stage_pixels(const std::vector<ConvGeometry>& stages, const Pixels& last) {
  std::vector<Pixels> pixels(stages.size(), last);
  for (size_t i = stages.size() - 1; i > 0; --i) {
    const ConvGeometry& g = stages[i];
    pixels[i - 1] = pixels[i];
    if (is_pointwise(g)) continue;
    pixels[i - 1] = {.mask = expand_mask(pixels[i].mask, {g.kernel_height, g.kernel_width},
                                         {g.stride_h, g.stride_w}, padding_of(g),
                                         {g.dilation_h, g.dilation_w}, {g.in_height, g.in_width}),
                     .active_idx = {},
                     .count = {}};
  }
  return pixels;
}

// Into target, which is the shortcut then, or a new image. Returns the output and the mask.
std::tuple<Tensor, Tensor> run(const Block& block, const OptionalTensor& target) {
  const BlockTensors& t = block.tensors;
  const Tensor& shortcut = t.shortcut ? *t.shortcut : t.input;
  const bool activates_shortcut = t.shortcut.has_value();
  const Pixels last = block_pixels(block);
  const std::vector<Pixels> pixels = stage_pixels(block.stages, last);
  Tensor features = t.input;
  for (size_t i = 0; i < block.stages.size(); ++i) {
    const ConvGeometry& g = block.stages[i];
    const std::vector<int64_t> stride{g.stride_h, g.stride_w};
    const std::vector<int64_t> dilation{g.dilation_h, g.dilation_w};
    const auto& [mask, active_idx, count] = pixels[i];
    OptionalTensor pack;
    if (!block.packed_weights.empty()) pack = block.packed_weights[i];
    if (i + 1 < block.stages.size()) {
      features = perforated_conv2d(features, t.weights[i], mask, t.biases[i], {}, {}, active_idx,
                                   count, pack, stride, padding_of(g), dilation, g.groups, "none",
                                   block.activation, false, {}, "auto", block.allow_tf32);
    } else if (target) {
      perforated_conv2d_into(*target, features, t.weights[i], mask, t.biases[i], active_idx, count,
                             pack, stride, padding_of(g), dilation, g.groups, block.sum_activation,
                             true, activates_shortcut, {}, "auto", block.allow_tf32);
    } else {
      features = perforated_conv2d(features, t.weights[i], mask, t.biases[i], shortcut, shortcut,
                                   active_idx, count, pack, stride, padding_of(g), dilation,
                                   g.groups, "passthrough", block.sum_activation,
                                   activates_shortcut, {}, "auto", block.allow_tf32);
    }
  }
  const Tensor decided =
      t.mask ? torch::stable::new_empty(t.input, {0}, ScalarType::Bool) : last.mask;
  return {in_layout(features, is_channels_last(t.input)), decided};
}

std::tuple<Tensor, Tensor> gated_block(
    const Tensor& input, const OptionalTensor& shortcut, const OptionalTensor& mask,
    const OptionalTensor& gate_weight, const OptionalTensor& gate_bias,
    const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
    const std::vector<Tensor>& packed_weights, const std::vector<int64_t>& stride,
    const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
    const std::vector<int64_t>& groups, const std::string& activation,
    const std::string& sum_activation, bool allow_tf32) {
  constexpr const char* kOp = "gated_block";
  const BlockTensors tensors{input, shortcut, mask, gate_weight, gate_bias, weights, biases};
  return run({.tensors = tensors,
              .packed_weights = packed_weights,
              .stages = check_gated_block(kOp, tensors, packed_weights,
                                          {stride, padding, dilation, groups}),
              .activation = activation,
              .sum_activation = sum_activation,
              .allow_tf32 = allow_tf32},
             {});
}

Tensor gated_block_into(const Tensor& base, const OptionalTensor& input, const OptionalTensor& mask,
                        const OptionalTensor& gate_weight, const OptionalTensor& gate_bias,
                        const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
                        const std::vector<Tensor>& packed_weights,
                        const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                        const std::vector<int64_t>& dilation, const std::vector<int64_t>& groups,
                        const std::string& activation, const std::string& sum_activation,
                        bool allow_tf32) {
  constexpr const char* kOp = "gated_block_into";
  check_rank(kOp, "base", "(N, C_out, H_out, W_out)", base, 4);
  const OptionalTensor shortcut = input ? OptionalTensor(base) : std::nullopt;
  const BlockTensors tensors{
      input ? *input : base, shortcut, mask, gate_weight, gate_bias, weights, biases};
  const Block block{.tensors = tensors,
                    .packed_weights = packed_weights,
                    .stages = check_gated_block(kOp, tensors, packed_weights,
                                                {stride, padding, dilation, groups}),
                    .activation = activation,
                    .sum_activation = sum_activation,
                    .allow_tf32 = allow_tf32};
  check_overwritten(kOp, base, tensors);
  return std::get<1>(run(block, base));
}

}  // namespace
}  // namespace perfconv::cuda

PERFCONV_CUDA_IMPL(m) {
  m.impl("gated_block", TORCH_BOX(&perfconv::cuda::gated_block));
  m.impl("gated_block_into", TORCH_BOX(&perfconv::cuda::gated_block_into));
}
