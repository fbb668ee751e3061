// Weights in the order the GEMM kernels read them: panels of tile_cols output channels.
//
// Forward panels: [group][ceil(C_out/groups / tile_cols)][depth][tile_cols], depth = taps *
// C_in/groups in (tap, channel) order, rounded up to the kernel's depth_step; unused places are
// zero. With a depth_step of 2, neighbouring depths are interleaved: [depth / 2][tile_cols][2].
#pragma once

#include "core/checks.h"
#include "core/geometry.h"
#include "cpu/kernels/kernel_table.h"

namespace perfconv::cpu {

// How the implicit GEMM computes one problem: the element type that enters the multiplications and
// how rows are reached.
struct GemmPlan {
  ScalarType compute;    // Float, Double or BFloat16
  bool is_indirect;      // rows are read in place; else copied into a small block, converted
  int64_t kernel_index;  // 0 wide tile, 1 narrow, kNarrowest
  int64_t tile_cols;
  int64_t depth_step;
  int64_t depth;         // of one panel, rounded up
  int64_t panel_blocks;  // panels per group
  int64_t panel_elements() const { return depth * tile_cols; }
  int64_t elements(int64_t groups) const { return groups * panel_blocks * panel_elements(); }
};

GemmPlan plan_gemm(ScalarType storage, int64_t group_in_channels, int64_t group_out_channels,
                   int64_t taps);

// The same for a forward pass, which may take the narrowest tile.
GemmPlan plan_forward(ScalarType storage, int64_t group_in_channels, int64_t group_out_channels,
                      int64_t taps);

template <class A>
const GemmKernel<A, AccumulateType<A>>& gemm_kernel(const GemmPlan& plan) {
  return gemm_kernels<A>(kernels())[plan.kernel_index];
}

// Calls function.operator()<A>() with the element type the plan computes in.
template <class Function>
void visit_compute(const GemmPlan& plan, Function function) {
  switch (plan.compute) {
    case ScalarType::Double:
      return function.template operator()<double>();
    case ScalarType::BFloat16:
      return function.template operator()<BFloat16>();
    default:
      return function.template operator()<float>();
  }
}

// Bytes of the forward panels, and of the dgrad panels:
// [group][ceil(C_in/groups / tile_cols)][tap][C_out/groups][tile_cols], the depth (C_out / groups)
// rounded up to depth_step and interleaved as above.
int64_t forward_panel_bytes(const GemmPlan& plan, int64_t groups);
int64_t dgrad_panel_bytes(const GemmPlan& plan, int64_t groups, int64_t taps);

// Write the panels of a weight to memory of that size; contiguous and channels_last weights are
// read as they lie.
void pack_forward(const Tensor& weight, const GemmPlan& plan, int64_t groups, void* to);
void pack_dgrad(const Tensor& weight, const GemmPlan& plan, int64_t groups, void* to);

// Whether `packed` is what pack_weight makes of `weight` (in any memory format) now.
bool is_current_pack(const Tensor& weight, const Tensor& packed, const GemmPlan& plan,
                     int64_t groups);

}  // namespace perfconv::cpu
