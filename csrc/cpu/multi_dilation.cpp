// Convolution with one dilation for each pixel, on the CPU.
//
// Each branch is a perforated convolution over the pixels that chose it: the implicit GEMM reaches
// them through row pointers with the dilation of the branch, so a pixel costs what it costs there.
// Branches run one after the other and write disjoint pixels; a tied weight is packed once. Their
// rows lie far apart: the GEMM goes tap by tap. In the gradients the branches' contributions are
// added in their order.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "core/multi_dilation_arguments.h"
#include "cpu/conv.h"
#include "cpu/images.h"
#include "cpu/kernels/kernel_table.h"
#include "cpu/pack.h"

namespace perfconv::cpu {
namespace {

// The pixels of each branch, ascending, and of all.
struct BranchLists {
  std::vector<ActiveList> branches;
  ActiveList all;
};

ActiveList empty_list(int64_t capacity) {
  ActiveList list;
  list.positions.reset(new int32_t[static_cast<size_t>(capacity)]);
  return list;
}

void append(ActiveList& list, int64_t position) {
  list.positions[static_cast<size_t>(list.count++)] = static_cast<int32_t>(position);
}

BranchLists branch_lists(const char* op, const Tensor& choice, int64_t branches) {
  const Tensor values = in_order(choice);
  const int32_t* chosen = data<int32_t>(values);
  const int64_t pixels = choice.numel();
  std::vector<int64_t> counts(static_cast<size_t>(branches), 0);
  for (int64_t p = 0; p < pixels; ++p) {
    if (chosen[p] < -1 || chosen[p] >= branches) {
      fail(op, "choice must be -1 (inactive) or an index of dilations, below ", branches, ", got ",
           chosen[p], ". Leave other pixels at -1.");
    }
    if (chosen[p] >= 0) ++counts[static_cast<size_t>(chosen[p])];
  }
  BranchLists lists{.branches = {}, .all = empty_list(pixels)};
  for (const int64_t count : counts) lists.branches.push_back(empty_list(count));
  for (int64_t p = 0; p < pixels; ++p) {
    if (chosen[p] < 0) continue;
    append(lists.branches[static_cast<size_t>(chosen[p])], p);
    append(lists.all, p);
  }
  return lists;
}

// Calls function(index, list) for the branches that a pixel chose, convolutions or copies.
template <class Function>
void visit_branches(const MultiDilation& problem, const BranchLists& lists, bool wants_copies,
                    const Function& function) {
  for (int64_t k = 0; k < problem.branches(); ++k) {
    const auto index = static_cast<size_t>(k);
    const bool is_copy = problem.dilations[index] == 0;
    const ActiveList& list = lists.branches[index];
    if (is_copy == wants_copies && list.count > 0) function(k, list);
  }
}

void copy_pixels(const ActiveList& list, const Tensor& from, const Tensor& to) {
  const int64_t bytes = from.size(1) * from.element_size();
  const char* source = data<char>(from);
  char* target = mutable_data<char>(to);
  parallel_rows(list.count, bytes / 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t offset = list.positions[static_cast<size_t>(i)] * bytes;
      copy_bytes(target + offset, source + offset, bytes);
    }
  });
}

OptionalTensor packed_once(const Tensor& weight, const MultiDilation& problem,
                           const BranchLists& lists) {
  if (!problem.is_tied || lists.all.count == 0) return std::nullopt;
  const ConvGeometry& g = problem.geometry;
  const GemmPlan plan = plan_forward(weight.scalar_type(), g.in_channels, g.out_channels, g.taps());
  const Tensor panels = torch::stable::empty({plan.elements(1)}, plan.compute);
  pack_forward(to_contiguous(weight), plan, 1, panels.mutable_data_ptr());
  return panels;
}

Tensor multi_dilation_conv2d(const Tensor& input, const Tensor& weight, const Tensor& choice,
                             const OptionalTensor& bias, const OptionalTensor& base,
                             const std::vector<int64_t>& dilations, const std::string& fill_name,
                             const std::string& activation_name, bool /*allow_tf32*/,
                             const OptionalTensor& packed_weight) {
  constexpr const char* kOp = "multi_dilation_conv2d";
  const Fill fill = parse_fill(kOp, fill_name);
  const Activation activation = parse_activation(kOp, activation_name);
  const MultiDilation problem =
      check_multi_dilation(kOp, input, weight, choice, bias, base, dilations, fill);
  const ConvGeometry& g = problem.geometry;
  const BranchLists lists = branch_lists(kOp, choice, problem.branches());
  const bool has_rows = packed_weight && packed_weight->dim() == 2 && !problem.is_tied &&
                        packed_weight->size(0) == problem.branches();
  const OptionalTensor packed = packed_weight ? packed_weight : packed_once(weight, problem, lists);
  ForwardProblem all{
      .geometry = g,
      .input = to_channels_last(input),
      .weight = weight,
      .packed = {},
      .bias = {},
      .residual = {},
      .base = base ? OptionalTensor(to_channels_last(*base)) : std::nullopt,
      .fill = fill,
      .activation = activation,
      .active = &lists.all,
      .output = empty_image(input, {g.batch, g.out_channels, g.out_height, g.out_width}, true)};
  visit_branches(problem, lists, false, [&](int64_t k, const ActiveList& list) {
    ForwardProblem branch = all;
    branch.geometry = problem.branch(k);
    branch.weight = branch_tensor(weight, problem.is_tied, k);
    branch.packed = has_rows ? OptionalTensor(torch::stable::select(*packed_weight, 0, k)) : packed;
    if (bias) {
      branch.bias = in_order(branch_tensor(*bias, bias->dim() == 1, k));
    }
    branch.fill = Fill::kNone;
    branch.active = &list;
    branch.is_by_taps = true;
    forward_implicit_gemm(branch);
  });
  visit_branches(problem, lists, true, [&](int64_t, const ActiveList& list) {
    copy_pixels(list, all.input, all.output);
  });
  fill_inactive(all);
  if (fill == Fill::kNearest) fill_nearest(all.output, lists.all);
  return in_layout(all.output, is_channels_last(input));
}

// sums += values, both of one size.
template <class T, class Acc>
void add_to(const Tensor& values, std::vector<Acc>& sums) {
  const auto add = row_kernel<T>(kernels()).add;
  const T* from = data<T>(values);
  constexpr int64_t kRun = 4096;
  const auto size = static_cast<int64_t>(sums.size());
  parallel_rows((size + kRun - 1) / kRun, kRun / 16, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kRun;
    add(from + first, sums.data() + first, std::min(end * kRun, size) - first);
  });
}

Tensor multi_dilation_dgrad(const Tensor& grad_output, const Tensor& weight, const Tensor& choice,
                            const std::vector<int64_t>& dilations, bool channels_last,
                            bool /*allow_tf32*/) {
  constexpr const char* kOp = "multi_dilation_dgrad";
  if (weight.dim() != 5) check_rank(kOp, "weight", "(C_out, C_in, k, k)", weight, 4);
  const MultiDilation problem = check_multi_dilation_grad(kOp, grad_output, "weight", weight,
                                                          choice, size_vector(weight), dilations);
  const ConvGeometry& g = problem.geometry;
  const BranchLists lists = branch_lists(kOp, choice, problem.branches());
  const std::vector<int64_t> shape{g.batch, g.in_channels, g.in_height, g.in_width};
  const Tensor result = empty_image(grad_output, shape, true);
  GradProblem branch{.geometry = g,
                     .grad_output = to_channels_last(grad_output),
                     .operand = weight,
                     .active = nullptr,
                     .result = empty_image(grad_output, shape, true)};
  visit_dtype(kOp, grad_output.scalar_type(), [&]<class T>() {
    using Acc = AccumulateType<T>;
    std::vector<Acc> sums(static_cast<size_t>(result.numel()), Acc(0));
    visit_branches(problem, lists, false, [&](int64_t k, const ActiveList& list) {
      branch.geometry = problem.branch(k);
      branch.operand = to_contiguous(branch_tensor(weight, problem.is_tied, k));
      branch.active = &list;
      dgrad_implicit_gemm(branch);
      add_to<T>(branch.result, sums);
    });
    const RowKernel<T, Acc>& row = row_kernel<T>(kernels());
    visit_branches(problem, lists, true, [&](int64_t, const ActiveList& list) {
      const T* from = data<T>(branch.grad_output);
      for (int64_t i = 0; i < list.count; ++i) {
        const int64_t offset = list.positions[static_cast<size_t>(i)] * g.in_channels;
        row.add(from + offset, sums.data() + offset, g.in_channels);
      }
    });
    row.narrow(sums.data(), mutable_data<T>(result), result.numel());
  });
  return in_layout(result, channels_last);
}

Tensor multi_dilation_wgrad(const Tensor& grad_output, const Tensor& input, const Tensor& choice,
                            int64_t kernel_size, const std::vector<int64_t>& dilations,
                            bool is_tied, bool /*allow_tf32*/) {
  constexpr const char* kOp = "multi_dilation_wgrad";
  const MultiDilation problem =
      check_multi_dilation_wgrad(kOp, grad_output, input, choice, kernel_size, dilations, is_tied);
  const ConvGeometry& g = problem.geometry;
  const std::vector<int64_t> shape = problem.weight_shape();
  const BranchLists lists = branch_lists(kOp, choice, problem.branches());
  const Tensor result = torch::stable::empty(shape, input.scalar_type());
  zero_bytes(result.mutable_data_ptr(), result.numel() * result.element_size());
  GradProblem branch{.geometry = g,
                     .grad_output = to_channels_last(grad_output),
                     .operand = to_channels_last(input),
                     .active = nullptr,
                     .result = is_tied ? torch::stable::empty(shape, input.scalar_type()) : result};
  visit_dtype(kOp, input.scalar_type(), [&]<class T>() {
    using Acc = AccumulateType<T>;
    std::vector<Acc> sums(is_tied ? static_cast<size_t>(result.numel()) : 0, Acc(0));
    visit_branches(problem, lists, false, [&](int64_t k, const ActiveList& list) {
      branch.geometry = problem.branch(k);
      branch.active = &list;
      if (!is_tied) branch.result = torch::stable::select(result, 0, k);
      wgrad_implicit_gemm(branch);
      if (is_tied) add_to<T>(branch.result, sums);
    });
    if (is_tied) {
      row_kernel<T>(kernels()).narrow(sums.data(), mutable_data<T>(result), result.numel());
    }
  });
  return result;
}

}  // namespace
}  // namespace perfconv::cpu

STABLE_TORCH_LIBRARY_IMPL(perfconv, CPU, m) {
  m.impl("multi_dilation_conv2d", TORCH_BOX(&perfconv::cpu::multi_dilation_conv2d));
  m.impl("multi_dilation_dgrad", TORCH_BOX(&perfconv::cpu::multi_dilation_dgrad));
  m.impl("multi_dilation_wgrad", TORCH_BOX(&perfconv::cpu::multi_dilation_wgrad));
}
