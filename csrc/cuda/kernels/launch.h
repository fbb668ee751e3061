// Every CUDA launcher: raw pointers, plain structs and a stream, no torch type.
//
// Images are rows of channels (N, H, W, C). Weights are (C_out, K_h, K_w, C_in / groups): the taps
// of an output channel are contiguous, so no kernel needs a packed copy. Counts of active pixels
// live on the device and are read there: grids are sized by the device and the largest possible
// count, and nothing here waits for the device. Launchers return early on empty work, allocate
// nothing, and opt in to shared memory themselves. Every output element is written exactly once.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/geometry.h"

namespace perfconv::cuda {

struct LaunchContext {
  cudaStream_t stream = nullptr;
  int multiprocessors = 0;
  int compute_capability = 0;  // 80, 86, 90, ...
};

// A mask on the output grid, True = compute.
struct MaskArgs {
  const uint8_t* mask = nullptr;
  int64_t images = 0;  // of the output
  int64_t height = 0;
  int64_t width = 0;
  bool is_shared = false;  // one mask image serves every image of the output

  constexpr int64_t pixels() const { return images * height * width; }
};

// The compacted mask.
struct ActiveArgs {
  const int32_t* idx = nullptr;    // (capacity,) flat output positions; past the count -1
  const int32_t* count = nullptr;  // (1,) on the device
  int64_t capacity = 0;
};

// ---- masks
// ---------------------------------------------------------------------------------------

// Bytes of scratch for a mask of that many pixels.
int64_t compact_mask_workspace(int64_t pixels);

// image_counts (images,) may be null.
cudaError_t launch_compact_mask(const LaunchContext& context, const MaskArgs& mask, void* workspace,
                                int32_t* active_idx, int32_t* count, int32_t* image_counts);

// expanded (images, in_height, in_width), 0 or 1: the input pixels that active outputs read.
cudaError_t launch_expand_mask(const LaunchContext& context, const MaskArgs& mask,
                               const ConvGeometry& geometry, uint8_t* expanded);

// ---- rows of active pixels
// -----------------------------------------------------------------------

// rows (capacity, channels): row i is the pixel active.idx[i]; rows past the count are zero.
cudaError_t launch_gather_pixels(const LaunchContext& context, StorageType storage,
                                 const void* image, int64_t channels, const ActiveArgs& active,
                                 void* rows);

// image (pixels, channels): row i goes to pixel active.idx[i], other pixels take base, or 0.
cudaError_t launch_scatter_pixels(const LaunchContext& context, StorageType storage,
                                  const void* rows, int64_t channels, const MaskArgs& mask,
                                  const ActiveArgs& active, const void* base, void* image);

// sums (channels,): over the active pixels, in fixed order. workspace: active_sum_workspace bytes.
int64_t active_sum_workspace(StorageType storage, int64_t channels, int64_t capacity);
cudaError_t launch_active_sum(const LaunchContext& context, StorageType storage, const void* image,
                              int64_t channels, const ActiveArgs& active, void* workspace,
                              void* sums);

// ---- nearest fill
// --------------------------------------------------------------------------------

// sources (pixels,): the flat position of the nearest active pixel of the image (smallest squared
// distance, ties to the lowest position; an active pixel is its own), -1 without any.
int64_t nearest_sources_workspace(const MaskArgs& mask);
cudaError_t launch_nearest_sources(const LaunchContext& context, const MaskArgs& mask,
                                   void* workspace, int32_t* sources);

// filled[p] = image[sources[p]], 0 where that is -1. In place is allowed.
cudaError_t launch_nearest_fill(const LaunchContext& context, StorageType storage,
                                const void* image, const int32_t* sources, int64_t pixels,
                                int64_t channels, void* filled);

// result[p] = sum of grad over the pixels q with sources[q] = p, ascending in q; 0 without any.
int64_t nearest_fill_grad_workspace(int64_t pixels);
cudaError_t launch_nearest_fill_grad(const LaunchContext& context, StorageType storage,
                                     const void* grad, const int32_t* sources, int64_t pixels,
                                     int64_t channels, void* workspace, void* result);

// ---- the convolution
// -----------------------------------------------------------------------------

// What happens to the sums: at active pixels activation(sum + bias + residual), elsewhere the fill.
struct Epilogue {
  const void* bias = nullptr;      // (C_out,)
  const void* residual = nullptr;  // as the output
  const void* base = nullptr;      // as the output, for Fill::kPassthrough
  Activation activation = Activation::kNone;
  Activation base_activation = Activation::kNone;
  Fill fill = Fill::kZero;  // kNearest: inactive pixels are left alone
};

struct ForwardArgs {
  ConvGeometry geometry;
  StorageType storage = StorageType::kFloat;
  bool allow_tf32 = false;
  const void* input = nullptr;   // (N, H, W, C_in)
  const void* weight = nullptr;  // (C_out, K_h, K_w, C_in / groups)
  Epilogue epilogue;
  MaskArgs mask;
  ActiveArgs active;
  void* output = nullptr;  // (N, H_out, W_out, C_out)
  void* workspace = nullptr;
};

// One thread for an output element; any shape; float64 too. The reference on the device.
cudaError_t launch_forward_direct(const LaunchContext& context, const ForwardArgs& args);

// Gradients. active is the list of output pixels.
struct GradArgs {
  ConvGeometry geometry;
  StorageType storage = StorageType::kFloat;
  bool allow_tf32 = false;
  const void* grad_output = nullptr;  // (N, H_out, W_out, C_out)
  const void* operand = nullptr;      // dgrad: weight; wgrad: input
  MaskArgs mask;
  ActiveArgs active;
  void* workspace = nullptr;
  void* result = nullptr;  // dgrad: (N, H, W, C_in); wgrad: (C_out, C_in / groups, K_h, K_w)
};

cudaError_t launch_dgrad_direct(const LaunchContext& context, const GradArgs& args);
cudaError_t launch_wgrad_direct(const LaunchContext& context, const GradArgs& args);

}  // namespace perfconv::cuda
