// Multi-dilation convolution on CUDA and its gradients: checks, layout, fills.
#include "core/multi_dilation_arguments.h"
#include "core/registration.h"
#include "cuda/device_call.h"
#include "cuda/device_traits.h"
#include "cuda/images.h"
#include "cuda/kernels/launch_sm90a.h"
#include "cuda/nearest.h"
#include "cuda/pack.h"
#include "cuda/planner_grad.h"

namespace perfconv::cuda {
namespace {

// A weight as rows of channels: the branches of an untied one are output channels of one weight.
Tensor weight_rows(const Tensor& weight, const MultiDilation& problem) {
  if (problem.is_tied) return to_rows(weight);
  const ConvGeometry& g = problem.geometry;
  return to_rows(torch::stable::reshape(weight, {problem.branches() * g.out_channels, g.in_channels,
                                                 g.kernel_height, g.kernel_width}));
}

MultiDilationArgs branch_args(const char* op, DeviceCall& call, const MultiDilation& problem,
                              const Tensor& choice, ScalarType dtype, bool allow_tf32) {
  if (problem.branches() > kMostBranches) {
    fail(op, "there must be at most ", kMostBranches, " dilations on CUDA, got ",
         problem.branches(), ". Split the call.");
  }
  const ConvGeometry& g = problem.geometry;
  MultiDilationArgs args;
  args.geometry = g;
  args.storage = storage_type(dtype);
  args.allow_tf32 = allow_tf32;
  args.choice = call.read<int32_t>(choice);
  args.branches = static_cast<int>(problem.branches());
  for (int k = 0; k < args.branches; ++k) {
    args.dilations[k] = static_cast<int32_t>(problem.dilations[static_cast<size_t>(k)]);
  }
  args.weight_pitch = problem.is_tied ? 0 : g.out_channels * g.in_channels * g.taps();
  return args;
}

// Whether tiles take the problem: the rules of the perforated convolution's gradients, which are
// also those of its forward pass and more.
bool takes_tiles(const MultiDilationArgs& args, const DeviceTraits& device) {
  const auto accepts = [&](GradKernel kernel) {
    return refusal(kernel, Gradient::kInput, args.geometry, device).empty();
  };
  return accepts(GradKernel::kTensorCore) || accepts(GradKernel::kSimt);
}

SortedBranches sort_branches(DeviceCall& call, const MultiDilationArgs& args) {
  const int64_t pixels = args.geometry.out_pixels();
  const int bits = branch_key_bits(args.branches);
  const auto words = [&](int64_t count) {
    return call.scratch(count * static_cast<int64_t>(sizeof(int32_t)));
  };
  auto* keys = static_cast<uint32_t*>(words(pixels));
  auto* sorted = static_cast<int32_t*>(words(pixels));
  auto* starts = static_cast<int32_t*>(words((int64_t{1} << bits) + 1));
  call.check(launch_branch_keys(call.context(), args, keys));
  const SortArgs sort{.keys = keys, .bits = bits, .capacity = pixels};
  void* workspace = call.scratch(counting_sort_workspace(sort));
  call.check(launch_counting_sort(call.context(), sort, workspace, sorted, starts));
  return {.sorted = sorted, .starts = starts};
}

void run_forward(DeviceCall& call, const MultiDilationArgs& args) {
  const DeviceTraits device = device_traits(call.context(), args, args.input, args.weight);
  if (!takes_tiles(args, device)) {
    return call.check(launch_multi_dilation_forward(call.context(), args));
  }
  const SortedBranches pixels = sort_branches(call, args);
  if (wgmma_refusal(device, args.geometry.in_channels, true).empty()) {
    void* workspace = call.scratch(multi_dilation_wgmma_workspace(call.context(), args));
    return call.check(launch_multi_dilation_wgmma(call.context(), args, pixels, workspace));
  }
  void* workspace = call.scratch(multi_dilation_workspace(call.context(), args));
  call.check(launch_multi_dilation_implicit(call.context(), args, pixels, workspace));
}

// For each branch the input pixels that its outputs read, as perforated_conv2d_dgrad sorts them.
std::vector<SortedPixels> sort_patterns(DeviceCall& call, const MultiDilationArgs& args) {
  const int64_t pixels = args.geometry.in_pixels();
  const int64_t lists = args.branches;
  const int bits = tap_key_bits(args.geometry);
  const int64_t bins = int64_t{1} << bits;
  const auto words = [&](int64_t count) {
    return call.scratch(lists * count * static_cast<int64_t>(sizeof(int32_t)));
  };
  auto* patterns = static_cast<uint32_t*>(words(pixels));
  auto* keys = static_cast<uint32_t*>(words(pixels));
  auto* sorted = static_cast<int32_t*>(words(pixels));
  auto* starts = static_cast<int32_t*>(words(bins + 1));
  call.check(launch_branch_patterns(call.context(), args, patterns, keys));
  const SortArgs sort{.keys = keys, .bits = bits, .capacity = pixels, .lists = lists};
  void* workspace = call.scratch(counting_sort_workspace(sort));
  call.check(launch_counting_sort(call.context(), sort, workspace, sorted, starts));
  std::vector<SortedPixels> branches;
  for (int64_t k = 0; k < lists; ++k) {
    branches.push_back({.sorted = sorted + k * pixels,
                        .patterns = patterns + k * pixels,
                        .count = starts + k * (bins + 1) + bins - 1});
  }
  return branches;
}

void run_dgrad(DeviceCall& call, const MultiDilation& problem, const MultiDilationArgs& args) {
  const ConvGeometry& g = args.geometry;
  if (g.in_pixels() == 0) return;
  const DeviceTraits device = device_traits(call.context(), args, args.grad_output, args.weight);
  if (!takes_tiles(args, device)) {
    return call.check(launch_multi_dilation_dgrad(call.context(), args));
  }
  const bool is_summed_in_place = args.storage == StorageType::kFloat;
  void* sums = is_summed_in_place
                   ? args.output
                   : call.scratch(g.in_pixels() * g.in_channels * sum_bytes(args.storage));
  GradArgs grad{.geometry = g,
                .storage = args.storage,
                .allow_tf32 = args.allow_tf32,
                .grad_output = args.grad_output,
                .operand = args.weight,
                .result = args.output,
                .sums = static_cast<float*>(sums)};
  call.check(launch_start_sums(call.context(), args, grad.sums));
  const std::vector<SortedPixels> pixels = sort_patterns(call, args);
  const bool has_wgmma = wgmma_refusal(device, g.out_channels).empty();
  grad.workspace = call.scratch(has_wgmma ? dgrad_wgmma_workspace(call.context(), grad)
                                          : dgrad_implicit_workspace(call.context(), grad));
  for (int64_t k = 0; k < problem.branches(); ++k) {
    if (problem.dilations[static_cast<size_t>(k)] == 0) continue;
    grad.geometry = problem.branch(k);
    grad.operand =
        static_cast<const char*>(args.weight) + k * args.weight_pitch * element_bytes(args.storage);
    const SortedPixels& of_branch = pixels[static_cast<size_t>(k)];
    call.check(has_wgmma ? launch_dgrad_wgmma(call.context(), grad, of_branch)
                         : launch_dgrad_implicit(call.context(), grad, of_branch));
  }
  if (!is_summed_in_place) call.check(launch_round_sums(call.context(), args, grad.sums));
}

void run_wgrad(DeviceCall& call, const MultiDilationArgs& args) {
  const DeviceTraits device = device_traits(call.context(), args, args.grad_output, args.input);
  if (!takes_tiles(args, device)) {
    return call.check(launch_multi_dilation_wgrad(call.context(), args));
  }
  const SortedBranches pixels = sort_branches(call, args);
  if (refusal(GradKernel::kWgmma, Gradient::kWeight, args.geometry, device).empty()) {
    void* workspace = call.scratch(multi_dilation_wgrad_wgmma_workspace(args));
    return call.check(launch_multi_dilation_wgrad_wgmma(call.context(), args, pixels, workspace));
  }
  void* workspace = call.scratch(multi_dilation_wgrad_workspace(args));
  call.check(launch_multi_dilation_wgrad_implicit(call.context(), args, pixels, workspace));
}

void fill_unchosen(DeviceCall& call, const MultiDilationArgs& args) {
  const ConvGeometry& g = args.geometry;
  auto* mask = static_cast<uint8_t*>(call.scratch(g.out_pixels()));
  call.check(launch_chosen_mask(call.context(), args.choice, args.branches, g.out_pixels(), mask));
  const MaskArgs chosen{
      .mask = mask, .images = g.batch, .height = g.out_height, .width = g.out_width};
  fill_nearest(call, chosen, args.storage, g.out_channels, args.output);
}

Tensor multi_dilation_conv2d(const Tensor& input, const Tensor& weight, const Tensor& choice,
                             const OptionalTensor& bias, const OptionalTensor& base,
                             const std::vector<int64_t>& dilations, const std::string& fill_name,
                             const std::string& activation_name, bool allow_tf32,
                             const OptionalTensor& packed_weight) {
  constexpr const char* kOp = "multi_dilation_conv2d";
  const Fill fill = parse_fill(kOp, fill_name);
  const Activation activation = parse_activation(kOp, activation_name);
  const MultiDilation problem =
      check_multi_dilation(kOp, input, weight, choice, bias, base, dilations, fill);
  const ConvGeometry& g = problem.geometry;
  const Tensor rows = to_rows(input);
  const Tensor taps = weight_rows(weight, problem);
  const Tensor chosen = torch::stable::contiguous(choice);
  const OptionalTensor bias_rows =
      bias ? OptionalTensor(torch::stable::contiguous(*bias)) : std::nullopt;
  const OptionalTensor base_rows = to_rows(base);
  const Tensor output = empty_rows(input, {g.batch, g.out_channels, g.out_height, g.out_width});
  {
    DeviceCall call(kOp, input);
    MultiDilationArgs args =
        branch_args(kOp, call, problem, chosen, input.scalar_type(), allow_tf32);
    args.input = call.read(rows);
    args.weight = call.read(taps);
    args.packed_weight =
        usable_pack(call, packed_weight, taps, g, problem.is_tied ? 1 : problem.branches());
    args.bias_pitch = bias && bias->dim() == 2 ? static_cast<int>(g.out_channels) : 0;
    args.epilogue.bias = call.read(bias_rows);
    args.epilogue.base = call.read(base_rows);
    args.epilogue.activation = activation;
    args.epilogue.fill = fill;
    args.output = call.write(output);
    run_forward(call, args);
    if (fill == Fill::kNearest) fill_unchosen(call, args);
  }
  return in_layout(output, is_channels_last(input));
}

Tensor multi_dilation_dgrad(const Tensor& grad_output, const Tensor& weight, const Tensor& choice,
                            const std::vector<int64_t>& dilations, bool channels_last,
                            bool allow_tf32) {
  constexpr const char* kOp = "multi_dilation_dgrad";
  if (weight.dim() != 5) check_rank(kOp, "weight", "(C_out, C_in, k, k)", weight, 4);
  const MultiDilation problem = check_multi_dilation_grad(kOp, grad_output, "weight", weight,
                                                          choice, size_vector(weight), dilations);
  const ConvGeometry& g = problem.geometry;
  const Tensor rows = to_rows(grad_output);
  const Tensor taps = weight_rows(weight, problem);
  const Tensor chosen = torch::stable::contiguous(choice);
  const Tensor result = empty_rows(grad_output, {g.batch, g.in_channels, g.in_height, g.in_width});
  {
    DeviceCall call(kOp, grad_output);
    MultiDilationArgs args =
        branch_args(kOp, call, problem, chosen, grad_output.scalar_type(), allow_tf32);
    args.grad_output = call.read(rows);
    args.weight = call.read(taps);
    args.output = call.write(result);
    run_dgrad(call, problem, args);
  }
  return in_layout(result, channels_last);
}

Tensor multi_dilation_wgrad(const Tensor& grad_output, const Tensor& input, const Tensor& choice,
                            int64_t kernel_size, const std::vector<int64_t>& dilations,
                            bool is_tied, bool allow_tf32) {
  constexpr const char* kOp = "multi_dilation_wgrad";
  const MultiDilation problem =
      check_multi_dilation_wgrad(kOp, grad_output, input, choice, kernel_size, dilations, is_tied);
  const Tensor grad_rows = to_rows(grad_output);
  const Tensor rows = to_rows(input);
  const Tensor chosen = torch::stable::contiguous(choice);
  const Tensor result = torch::stable::new_empty(input, problem.weight_shape());
  {
    DeviceCall call(kOp, grad_output);
    MultiDilationArgs args =
        branch_args(kOp, call, problem, chosen, input.scalar_type(), allow_tf32);
    args.grad_output = call.read(grad_rows);
    args.input = call.read(rows);
    args.output = call.write(result);
    run_wgrad(call, args);
  }
  return result;
}

}  // namespace
}  // namespace perfconv::cuda

PERFCONV_CUDA_IMPL(m) {
  m.impl("multi_dilation_conv2d", TORCH_BOX(&perfconv::cuda::multi_dilation_conv2d));
  m.impl("multi_dilation_dgrad", TORCH_BOX(&perfconv::cuda::multi_dilation_dgrad));
  m.impl("multi_dilation_wgrad", TORCH_BOX(&perfconv::cuda::multi_dilation_wgrad));
}
