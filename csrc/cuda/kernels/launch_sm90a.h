// The launchers of the kernels that only compute capability 9.0 runs (device/wgmma_gemm.cuh), each
// beside its counterpart in launch.h: for bfloat16 and float16, with depths of a group a multiple
// of 64, 16-byte aligned, at most 32 taps. The forward pass and multi-dilation also for float32
// rounded to tf32, with multiples of 32.
#pragma once

#include "cuda/kernels/launch.h"

namespace perfconv::cuda {

// A weight (matrices, columns, taps, depth), 16 bits an element, as launch_pack_weight writes it
// (device/packed_weight.cuh).
struct PackArgs {
  const void* weight = nullptr;  // 16-byte aligned
  int64_t matrices = 1;          // groups
  int64_t columns = 0;           // of each
  int64_t taps = 0;
  int64_t depth = 0;       // a multiple of 64
  void* packed = nullptr;  // packed_elements(), 16-byte aligned
};

// Elements of one matrix, and of the whole pack, which ends in some that a last copy may run into.
int64_t packed_pitch(const PackArgs& args);
int64_t packed_elements(const PackArgs& args);
cudaError_t launch_pack_weight(const LaunchContext& context, const PackArgs& args);

int64_t forward_wgmma_workspace(const LaunchContext& context, const ForwardArgs& args);
cudaError_t launch_forward_wgmma(const LaunchContext& context, const ForwardArgs& args);

int64_t dgrad_wgmma_workspace(const LaunchContext& context, const GradArgs& args);
cudaError_t launch_dgrad_wgmma(const LaunchContext& context, const GradArgs& args,
                               const SortedPixels& pixels);

// More than 64 output channels of a group; the depths are pixels, of any number.
int64_t wgrad_wgmma_workspace(const GradArgs& args);
cudaError_t launch_wgrad_wgmma(const LaunchContext& context, const GradArgs& args);

int64_t multi_dilation_wgmma_workspace(const LaunchContext& context, const MultiDilationArgs& args);
cudaError_t launch_multi_dilation_wgmma(const LaunchContext& context, const MultiDilationArgs& args,
                                        const SortedBranches& pixels, void* workspace);
// As launch_wgrad_wgmma.
int64_t multi_dilation_wgrad_wgmma_workspace(const MultiDilationArgs& args);
cudaError_t launch_multi_dilation_wgrad_wgmma(const LaunchContext& context,
                                              const MultiDilationArgs& args,
                                              const SortedBranches& pixels, void* workspace);

}  // namespace perfconv::cuda
