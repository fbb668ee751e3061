// Every CUDA launcher: raw pointers, plain structs and a stream, no torch type.
//
// Images are rows of channels (N, H, W, C). Weights are (C_out, K_h, K_w, C_in / groups): the taps
// of an output channel are contiguous, so no kernel needs a packed copy (that of 9.0 may have one).
// Counts of active pixels live on the device and are read there: grids are sized by the device and
// the largest possible count, and nothing here waits for the device. Launchers return early on
// empty work, allocate nothing, and opt in to shared memory themselves. Every output element is
// written exactly once.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/geometry.h"

namespace perfconv::cuda {

struct LaunchContext {
  cudaStream_t stream = nullptr;
  int multiprocessors = 0;
  int compute_capability = 0;     // 80, 86, 90, ...
  bool may_take_clusters = true;  // planner.h
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

// Bytes of scratch for a mask of that many pixels. The compaction counts sections of
// kCompactSection pixels; the workspace begins with these counts, int32.
constexpr int64_t kCompactSection = 2048;
int64_t compact_mask_workspace(int64_t pixels);

// image_counts (images,) may be null.
cudaError_t launch_compact_mask(const LaunchContext& context, const MaskArgs& mask, void* workspace,
                                int32_t* active_idx, int32_t* count, int32_t* image_counts);

// The second half of the compaction, where the sections are counted already. image_counts must be
// zero before.
cudaError_t launch_write_active(const LaunchContext& context, const MaskArgs& mask, void* workspace,
                                int32_t* active_idx, int32_t* count, int32_t* image_counts);

// expanded (images, in_height, in_width), 0 or 1: the input pixels that active outputs read.
cudaError_t launch_expand_mask(const LaunchContext& context, const MaskArgs& mask,
                               const ConvGeometry& geometry, uint8_t* expanded);

// A 1x1 convolution to two logits at every pixel, and what is decided from them.
struct GateArgs {
  StorageType storage = StorageType::kFloat;
  const void* input = nullptr;   // (pixels, channels)
  const void* weight = nullptr;  // (2, channels)
  const void* bias = nullptr;    // (2,) or null
  int64_t images = 0;
  int64_t height = 0;
  int64_t width = 0;
  int64_t channels = 0;
  uint8_t* mask = nullptr;  // (pixels,): logits[1] > logits[0]
  void* soft = nullptr;     // (pixels,): softmax(logits)[1], may be null

  constexpr int64_t pixels() const { return images * height * width; }
};

// workspace: compact_mask_workspace(pixels); the other results as those of launch_compact_mask.
cudaError_t launch_gate_mask(const LaunchContext& context, const GateArgs& args, void* workspace,
                             int32_t* active_idx, int32_t* count, int32_t* image_counts);

// ---- rows of active pixels
// -----------------------------------------------------------------------

// rows (capacity, channels): row i is the pixel active.idx[i]; rows past the count are zero.
cudaError_t launch_gather_pixels(const LaunchContext& context, StorageType storage,
                                 const void* image, int64_t channels, const ActiveArgs& active,
                                 void* rows);

// row_of (capacity,): the place of each pixel in active.idx, -1 if it is not there.
cudaError_t launch_invert_active(const LaunchContext& context, const ActiveArgs& active,
                                 int32_t* row_of);

// image (pixels, channels): pixel p takes the row row_of[p], without one base, or 0.
cudaError_t launch_scatter_pixels(const LaunchContext& context, StorageType storage,
                                  const void* rows, int64_t channels, const int32_t* row_of,
                                  int64_t pixels, const void* base, void* image);

// sums (channels,): over the active pixels, in fixed order. workspace: active_sum_workspace bytes.
int64_t active_sum_workspace(StorageType storage, int64_t channels, int64_t capacity);
cudaError_t launch_active_sum(const LaunchContext& context, StorageType storage, const void* image,
                              int64_t channels, const ActiveArgs& active, void* workspace,
                              void* sums);

// ---- nearest fill
// --------------------------------------------------------------------------------

// Where the pixels of a mask find their values under the nearest fill.
struct NearestMap {
  // (pixels,): the row of the nearest active pixel in the column of a pixel, of two the upper one;
  // -1 if the column has none.
  int32_t* column_rows = nullptr;
  // (pixels,): the flat position of the nearest active pixel of the image (smallest squared
  // distance, ties to the lowest position; an active pixel is its own), -1 without any.
  int32_t* sources = nullptr;
};

cudaError_t launch_nearest_map(const LaunchContext& context, const MaskArgs& mask,
                               const NearestMap& map);

// filled[p] = image[sources[p]], 0 where that is -1. In place is allowed.
cudaError_t launch_nearest_fill(const LaunchContext& context, StorageType storage,
                                const void* image, const int32_t* sources, int64_t pixels,
                                int64_t channels, void* filled);

// result[p] = sum of grad over the pixels q with sources[q] = p, ascending in q; 0 without any.
// Of the mask only its sizes are read.
cudaError_t launch_nearest_fill_grad(const LaunchContext& context, StorageType storage,
                                     const void* grad, const MaskArgs& mask, const NearestMap& map,
                                     int64_t channels, void* result);

// ---- the convolution
// -----------------------------------------------------------------------------

// What happens to the sums: at active pixels activation(sum + bias + residual), elsewhere the fill.
struct Epilogue {
  const void* bias = nullptr;      // (C_out,)
  const void* residual = nullptr;  // as the output
  const void* base = nullptr;      // as the output, for Fill::kPassthrough
  Activation activation = Activation::kNone;
  Activation base_activation = Activation::kNone;
  Fill fill = Fill::kZero;
};

// A weight as launch_pack_weight (launch_sm90a.h) lays it out, beside the weight itself.
struct PackedWeight {
  const void* blocks = nullptr;  // 16-byte aligned; null: there is none
  int matrices = 0;              // groups, or branches with weights of their own
  int pitch = 0;                 // elements from one to the next
};

struct ForwardArgs {
  ConvGeometry geometry;
  StorageType storage = StorageType::kFloat;
  bool allow_tf32 = false;
  const void* input = nullptr;   // (N, H, W, C_in)
  const void* weight = nullptr;  // (C_out, K_h, K_w, C_in / groups)
  PackedWeight packed_weight{};  // only capability 9.0 reads it
  Epilogue epilogue;
  MaskArgs mask;
  ActiveArgs active;
  void* output = nullptr;  // (N, H_out, W_out, C_out)
  void* workspace = nullptr;
};

// One thread for an output element; any shape; float64 too. The reference on the device.
cudaError_t launch_forward_direct(const LaunchContext& context, const ForwardArgs& args);

// Gathered rows in tiles (device/implicit_gemm.cuh): on tensor cores for bfloat16, float16 and,
// with allow_tf32, float32; float32 exactly without. At most 32 taps; depths of a group a multiple
// of 16 bytes; input and weight 16-byte aligned.
int64_t forward_implicit_workspace(const LaunchContext& context, const ForwardArgs& args);
cudaError_t launch_forward_implicit(const LaunchContext& context, const ForwardArgs& args);

// Depthwise (groups = C_in = C_out), channels a multiple of 16 bytes, input 16-byte aligned, at
// most kMostDepthwiseTaps taps; not float64.
constexpr int64_t kMostDepthwiseTaps = 64;
cudaError_t launch_forward_depthwise(const LaunchContext& context, const ForwardArgs& args);

// Tiles of float32 multiply-adds over elements gathered one by one: any channels, groups and taps;
// not float64.
cudaError_t launch_forward_few_channels(const LaunchContext& context, const ForwardArgs& args);

// A dense convolution to the perforated one, in place: residual and activation at active pixels,
// the fill elsewhere. The bias is in the image already.
cudaError_t launch_blend(const LaunchContext& context, StorageType storage, const MaskArgs& mask,
                         const Epilogue& epilogue, int64_t channels, void* image);

// Gradients. active is the list of output pixels.
struct GradArgs {
  ConvGeometry geometry;
  StorageType storage = StorageType::kFloat;
  bool allow_tf32 = false;
  const void* grad_output = nullptr;  // (N, H_out, W_out, C_out)
  const void* operand = nullptr;      // dgrad: weight; wgrad: input
  MaskArgs mask{};
  ActiveArgs active{};
  void* workspace = nullptr;
  void* result = nullptr;  // dgrad: (N, H, W, C_in); wgrad: (C_out, C_in / groups, K_h, K_w)
  // launch_dgrad_implicit: (N, H, W, C_in), to which it adds the gradient instead of writing result
  float* sums = nullptr;
};

cudaError_t launch_dgrad_direct(const LaunchContext& context, const GradArgs& args);
cudaError_t launch_wgrad_direct(const LaunchContext& context, const GradArgs& args);

// ---- the textbook path, each step on its own
// ---------------------------------------------

// columns (capacity, groups, C_in / groups * taps): the receptive fields of the active pixels, 0 in
// the padding. In a group the order is (taps, channels), or (channels, taps) with is_tap_fastest.
// Rows past the count are left alone.
cudaError_t launch_im2col(const LaunchContext& context, StorageType storage,
                          const ConvGeometry& geometry, const void* input, const ActiveArgs& active,
                          bool is_tap_fastest, void* columns);

// The reverse, as sums: image (N, H, W, C_in)[q] = sum over the taps through which active pixels
// read q. columns is in the type of the sums, order (taps, channels); row_of is that of
// launch_invert_active.
cudaError_t launch_col2im(const LaunchContext& context, StorageType storage,
                          const ConvGeometry& geometry, const void* columns, const int32_t* row_of,
                          void* image);

// Element (i, j) of a group lies at data[group * group_stride + i * row_stride + j *
// column_stride].
struct MatrixArgs {
  const void* data = nullptr;
  int64_t row_stride = 0;
  int64_t column_stride = 1;
  int64_t group_stride = 0;
};

// product = left (rows, depth) times right (depth, columns), for each group. The count of active
// pixels, on the device, takes the place of rows, or with is_count_depth of depth.
struct RowGemmArgs {
  StorageType storage = StorageType::kFloat;
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t depth = 0;
  int64_t groups = 1;
  const int32_t* count = nullptr;
  bool is_count_depth = false;
  MatrixArgs left;
  MatrixArgs right;
  void* product = nullptr;  // rows of neighbouring elements
  int64_t product_row_stride = 0;
  int64_t product_group_stride = 0;
  bool keeps_sums = false;  // the product is in the type of the sums, else in storage
};

cudaError_t launch_row_gemm(const LaunchContext& context, const RowGemmArgs& args);

// The output of a convolution from its sums (capacity, C_out), in the type of the sums.
cudaError_t launch_finish_rows(const LaunchContext& context, const ForwardArgs& args,
                               const void* sums);

// ---- sorting
// -------------------------------------------------------------------------------------

// The places 0, 1, 2, ... of each list ordered by their keys, equal ones as they are.
struct SortArgs {
  const uint32_t* keys = nullptr;  // (lists, capacity), below 2^bits
  int bits = 9;                    // 9 at most
  int64_t capacity = 0;
  int64_t lists = 1;  // 65535 at most
};

// sorted (lists, capacity); starts (lists, 2^bits + 1), where the keys begin, may be null.
int64_t counting_sort_workspace(const SortArgs& args);
cudaError_t launch_counting_sort(const LaunchContext& context, const SortArgs& args,
                                 void* workspace, int32_t* sorted, int32_t* starts);

// For each input pixel: bit t of patterns where an active output reads it through tap t (32 taps at
// most), and the key, of tap_key_bits, to sort pixels by. The last key is that of pattern 0.
int tap_key_bits(const ConvGeometry& geometry);
cudaError_t launch_tap_patterns(const LaunchContext& context, const ConvGeometry& geometry,
                                const MaskArgs& mask, uint32_t* patterns, uint32_t* keys);

// The input pixels in the order of their keys; those before *count are read by active outputs.
struct SortedPixels {
  const int32_t* sorted = nullptr;     // (in_pixels,)
  const uint32_t* patterns = nullptr;  // (in_pixels,), by position
  const int32_t* count = nullptr;      // (1,) on the device
};

// Both by tiles, for problems that the planner accepts; workspace: as many bytes as asked for.
int64_t dgrad_implicit_workspace(const LaunchContext& context, const GradArgs& args);
cudaError_t launch_dgrad_implicit(const LaunchContext& context, const GradArgs& args,
                                  const SortedPixels& pixels);
int64_t wgrad_implicit_workspace(const GradArgs& args);
cudaError_t launch_wgrad_implicit(const LaunchContext& context, const GradArgs& args);

// As many groups as channels.
cudaError_t launch_dgrad_depthwise(const LaunchContext& context, const GradArgs& args);
int64_t wgrad_depthwise_workspace(const GradArgs& args);
cudaError_t launch_wgrad_depthwise(const LaunchContext& context, const GradArgs& args);

// ---- one dilation for each pixel
// ------------------------------------------------------------------

constexpr int kMostBranches = 64;

// Input and output have the same grid. Values of choice that are no branch mean -1: inactive.
struct MultiDilationArgs {
  ConvGeometry geometry;  // of dilation 1
  StorageType storage = StorageType::kFloat;
  bool allow_tf32 = false;
  const int32_t* choice = nullptr;  // (N, H, W)
  int branches = 0;
  int32_t dilations[kMostBranches] = {};  // 0 copies the input
  const void* input = nullptr;            // (N, H, W, C_in); forward, wgrad
  const void* grad_output = nullptr;      // (N, H, W, C_out); dgrad, wgrad
  const void* weight = nullptr;           // (C_out, k, k, C_in), one or one a branch
  int64_t weight_pitch = 0;               // elements from branch to branch; 0: one weight for all
  PackedWeight packed_weight{};           // forward; only capability 9.0 reads it
  int bias_pitch = 0;                     // the same of epilogue.bias
  Epilogue epilogue;                      // forward; no residual
  void* output = nullptr;                 // forward: (N, H, W, C_out); dgrad: (N, H, W, C_in);
                                          // wgrad: (C_out, C_in, k, k), one or one a branch
};

cudaError_t launch_multi_dilation_forward(const LaunchContext& context,
                                          const MultiDilationArgs& args);
cudaError_t launch_multi_dilation_dgrad(const LaunchContext& context,
                                        const MultiDilationArgs& args);
cudaError_t launch_multi_dilation_wgrad(const LaunchContext& context,
                                        const MultiDilationArgs& args);

// The input gradient by tiles, a branch after the other: launch_dgrad_implicit of each branch adds
// to sums (N, H, W, C_in), which start with what is copied. For problems without a refusal.
// patterns, keys (branches, N * H * W): of launch_tap_patterns, for each branch; no tap where a
// branch copies.
cudaError_t launch_branch_patterns(const LaunchContext& context, const MultiDilationArgs& args,
                                   uint32_t* patterns, uint32_t* keys);
cudaError_t launch_start_sums(const LaunchContext& context, const MultiDilationArgs& args,
                              float* sums);
// args.output = the sums, rounded.
cudaError_t launch_round_sums(const LaunchContext& context, const MultiDilationArgs& args,
                              const float* sums);

// mask[p] = 1 where choice[p] is a branch, else 0.
cudaError_t launch_chosen_mask(const LaunchContext& context, const int32_t* choice, int branches,
                               int64_t pixels, uint8_t* mask);

// The output pixels sorted by their branch; those that copy the input or chose none come last.
struct SortedBranches {
  const int32_t* sorted = nullptr;  // (N * H * W,)
  const int32_t* starts = nullptr;  // where each branch begins, and the end of the last one
};

int branch_key_bits(int branches);
cudaError_t launch_branch_keys(const LaunchContext& context, const MultiDilationArgs& args,
                               uint32_t* keys);

// Both by tiles: a fused launch for all branches. For problems without a refusal.
int64_t multi_dilation_workspace(const LaunchContext& context, const MultiDilationArgs& args);
cudaError_t launch_multi_dilation_implicit(const LaunchContext& context,
                                           const MultiDilationArgs& args,
                                           const SortedBranches& pixels, void* workspace);
int64_t multi_dilation_wgrad_workspace(const MultiDilationArgs& args);
cudaError_t launch_multi_dilation_wgrad_implicit(const LaunchContext& context,
                                                 const MultiDilationArgs& args,
                                                 const SortedBranches& pixels, void* workspace);

}  // namespace perfconv::cuda
