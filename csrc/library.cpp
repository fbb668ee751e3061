// Every operator schema: the table of contents of the native side. Implementations register
// themselves per device in csrc/cpu and csrc/cuda; gradients are registered in perfconv/ops.
//
// Conventions: mask is bool (N or 1, 1, H_out, W_out). padding is (top, bottom, left, right).
// active_idx and count are the compacted mask where the caller has it; an operator may compact the
// mask again instead of reading them (the CPU does). packed_weight is what pack_weight made of the
// same weight (one row a branch for several); one that does not fit is ignored. allow_tf32 lets
// CUDA round float32 factors to 10 bits of significand for the tensor cores; the CPU has no use for
// it.
#include "core/registration.h"

PERFCONV_LIBRARY(m) {
  m.def("compact_mask(Tensor mask) -> (Tensor active_idx, Tensor count, Tensor image_counts)");
  m.def(
      "expand_mask(Tensor mask, int[2] kernel_size, int[2] stride, int[4] padding, "
      "int[2] dilation, SymInt[2] input_size) -> Tensor");
  m.def(
      "gate_mask(Tensor input, Tensor weight, Tensor? bias, bool wants_soft) -> (Tensor soft, "
      "Tensor mask, Tensor active_idx, Tensor count, Tensor image_counts)");
  m.def("gather_pixels(Tensor input, Tensor active_idx, Tensor count) -> Tensor");
  m.def(
      "scatter_pixels(Tensor rows, Tensor mask, Tensor active_idx, Tensor count, Tensor? base) "
      "-> Tensor");
  // No tensors: the break-even densities that the CPU's choice goes by (cpu/break_even.h).
  m.def("set_break_even(float[] densities, str source) -> ()");
  m.def("pack_weight(Tensor weight, int groups) -> Tensor");
  m.def(
      "perforated_conv2d(Tensor input, Tensor weight, Tensor mask, Tensor? bias=None, "
      "Tensor? base=None, Tensor? residual=None, Tensor? active_idx=None, Tensor? count=None, "
      "Tensor? packed_weight=None, int[2] stride=1, int[4] padding=0, int[2] dilation=1, "
      "int groups=1, str fill=\"zero\", str activation=\"none\", bool activate_base=False, "
      "float? expected_density=None, str algorithm=\"auto\", bool allow_tf32=False) -> Tensor");
  // The same with base as the output: where the mask is False it stays, or is activated; adds_base
  // makes it the residual too.
  m.def(
      "perforated_conv2d_into(Tensor(a!) base, Tensor input, Tensor weight, Tensor mask, "
      "Tensor? bias=None, Tensor? active_idx=None, Tensor? count=None, "
      "Tensor? packed_weight=None, int[2] stride=1, int[4] padding=0, int[2] dilation=1, "
      "int groups=1, str activation=\"none\", bool adds_base=False, bool activate_base=False, "
      "float? expected_density=None, str algorithm=\"auto\", bool allow_tf32=False) -> ()");
  // A residual block in inference: the convolutions of a branch one after another, the last one
  // added to the shortcut (default: the input) at the pixels of the mask, the others where the next
  // one reads them. Numbers are stage by stage, (h, w). Either the mask is given, or a gate decides
  // (see gate_mask, at every stride-th pixel) and its mask comes back, else a mask without
  // elements. With a shortcut, sum_activation applies to all of its pixels.
  m.def(
      "gated_block(Tensor input, Tensor? shortcut, Tensor? mask, Tensor? gate_weight, "
      "Tensor? gate_bias, Tensor[] weights, Tensor[] biases, Tensor[] packed_weights, "
      "int[] stride, int[] padding, int[] dilation, int[] groups, str activation, "
      "str sum_activation, bool allow_tf32=False) -> (Tensor output, Tensor decided)");
  // The same with base as the shortcut and the output, and as the input if that is missing.
  m.def(
      "gated_block_into(Tensor(a!) base, Tensor? input, Tensor? mask, Tensor? gate_weight, "
      "Tensor? gate_bias, Tensor[] weights, Tensor[] biases, Tensor[] packed_weights, "
      "int[] stride, int[] padding, int[] dilation, int[] groups, str activation, "
      "str sum_activation, bool allow_tf32=False) -> Tensor");
  m.def(
      "perforated_conv2d_dgrad(Tensor grad_output, Tensor weight, Tensor mask, "
      "Tensor? active_idx, Tensor? count, SymInt[2] input_size, bool channels_last, "
      "int[2] stride, int[4] padding, int[2] dilation, int groups, str algorithm=\"auto\", "
      "bool allow_tf32=False) -> Tensor");
  m.def(
      "perforated_conv2d_wgrad(Tensor grad_output, Tensor input, Tensor mask, "
      "Tensor? active_idx, Tensor? count, int[2] kernel_size, int[2] stride, int[4] padding, "
      "int[2] dilation, int groups, str algorithm=\"auto\", bool allow_tf32=False) -> Tensor");
  // choice is int32 (N, 1, H, W): the index into dilations of each pixel, -1 for an inactive one.
  // Dilation 0 copies the input. weight is (C_out, C_in, k, k), or one such for each dilation.
  m.def(
      "multi_dilation_conv2d(Tensor input, Tensor weight, Tensor choice, Tensor? bias, "
      "Tensor? base, int[] dilations, str fill, str activation, bool allow_tf32=False, "
      "Tensor? packed_weight=None) -> Tensor");
  m.def(
      "multi_dilation_dgrad(Tensor grad_output, Tensor weight, Tensor choice, int[] dilations, "
      "bool channels_last, bool allow_tf32=False) -> Tensor");
  m.def(
      "multi_dilation_wgrad(Tensor grad_output, Tensor input, Tensor choice, int kernel_size, "
      "int[] dilations, bool is_tied, bool allow_tf32=False) -> Tensor");
  // Both, and the gradient of the bias (no elements unless wanted). grad_input and grad_weight have
  // the memory formats of input and weight.
  m.def(
      "perforated_conv2d_backward(Tensor grad_output, Tensor input, Tensor weight, Tensor mask, "
      "Tensor? active_idx, Tensor? count, int[2] stride, int[4] padding, int[2] dilation, "
      "int groups, bool wants_bias, str algorithm=\"auto\", bool allow_tf32=False) "
      "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");
  m.def("active_sum(Tensor values, Tensor mask) -> Tensor");
  m.def("nearest_fill(Tensor values, Tensor mask) -> Tensor");
  m.def("nearest_fill_grad(Tensor grad, Tensor mask) -> Tensor");
}
