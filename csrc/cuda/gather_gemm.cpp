// The textbook path: which matrices its steps hand to each other, and how they lie in memory.
// Scratch is sized by the capacity, since the count is on the device; rows past the count are
// neither written nor read.
#include "cuda/gather_gemm.h"

namespace perfconv::cuda {
namespace {

// The receptive fields (capacity, groups, depth), depth = C_in / groups * taps.
MatrixArgs im2col(DeviceCall& call, StorageType storage, const ConvGeometry& g, const void* input,
                  const ActiveArgs& active, bool is_tap_fastest) {
  const int64_t depth = g.group_in_channels() * g.taps();
  void* columns = call.scratch(active.capacity * g.groups * depth * element_bytes(storage));
  call.check(launch_im2col(call.context(), storage, g, input, active, is_tap_fastest, columns));
  return {.data = columns, .row_stride = g.groups * depth, .group_stride = depth};
}

// The rows of grad_output at the active pixels, (capacity, C_out).
MatrixArgs gather_rows(DeviceCall& call, const GradArgs& args) {
  const int64_t channels = args.geometry.out_channels;
  void* rows = call.scratch(args.active.capacity * channels * element_bytes(args.storage));
  call.check(launch_gather_pixels(call.context(), args.storage, args.grad_output, channels,
                                  args.active, rows));
  return {.data = rows, .row_stride = channels, .group_stride = args.geometry.group_out_channels()};
}

// (C_out / groups, depth) of each group.
MatrixArgs weight_matrix(const ConvGeometry& g, const void* weight) {
  const int64_t depth = g.group_in_channels() * g.taps();
  return {.data = weight, .row_stride = depth, .group_stride = g.group_out_channels() * depth};
}

MatrixArgs transposed(const MatrixArgs& matrix) {
  return {.data = matrix.data,
          .row_stride = matrix.column_stride,
          .column_stride = matrix.row_stride,
          .group_stride = matrix.group_stride};
}

}  // namespace

void forward_gather_gemm(DeviceCall& call, const ForwardArgs& args) {
  const ConvGeometry& g = args.geometry;
  const ActiveArgs& active = args.active;
  const MatrixArgs columns = im2col(call, args.storage, g, args.input, active, false);
  void* sums = call.scratch(active.capacity * g.out_channels * sum_bytes(args.storage));
  call.check(launch_row_gemm(call.context(), {.storage = args.storage,
                                              .rows = active.capacity,
                                              .columns = g.group_out_channels(),
                                              .depth = g.group_in_channels() * g.taps(),
                                              .groups = g.groups,
                                              .count = active.count,
                                              .left = columns,
                                              .right = transposed(weight_matrix(g, args.weight)),
                                              .product = sums,
                                              .product_row_stride = g.out_channels,
                                              .product_group_stride = g.group_out_channels(),
                                              .keeps_sums = true}));
  call.check(launch_finish_rows(call.context(), args, sums));
}

void dgrad_gather_gemm(DeviceCall& call, const GradArgs& args) {
  const ConvGeometry& g = args.geometry;
  const ActiveArgs& active = args.active;
  const int64_t depth = g.group_in_channels() * g.taps();
  void* columns = call.scratch(active.capacity * g.groups * depth * sum_bytes(args.storage));
  call.check(launch_row_gemm(call.context(), {.storage = args.storage,
                                              .rows = active.capacity,
                                              .columns = depth,
                                              .depth = g.group_out_channels(),
                                              .groups = g.groups,
                                              .count = active.count,
                                              .left = gather_rows(call, args),
                                              .right = weight_matrix(g, args.operand),
                                              .product = columns,
                                              .product_row_stride = g.groups * depth,
                                              .product_group_stride = depth,
                                              .keeps_sums = true}));
  const auto row_of_bytes = active.capacity * static_cast<int64_t>(sizeof(int32_t));
  auto* row_of = static_cast<int32_t*>(call.scratch(row_of_bytes));
  call.check(launch_invert_active(call.context(), active, row_of));
  call.check(launch_col2im(call.context(), args.storage, g, columns, row_of, args.result));
}

void wgrad_gather_gemm(DeviceCall& call, const GradArgs& args) {
  const ConvGeometry& g = args.geometry;
  const int64_t depth = g.group_in_channels() * g.taps();
  call.check(launch_row_gemm(
      call.context(), {.storage = args.storage,
                       .rows = g.group_out_channels(),
                       .columns = depth,
                       .depth = args.active.capacity,
                       .groups = g.groups,
                       .count = args.active.count,
                       .is_count_depth = true,
                       .left = transposed(gather_rows(call, args)),
                       .right = im2col(call, args.storage, g, args.operand, args.active, true),
                       .product = args.result,
                       .product_row_stride = depth,
                       .product_group_stride = g.group_out_channels() * depth}));
}

}  // namespace perfconv::cuda
