// What an implicit GEMM computes:
//   out[target(r), g, n] = sum over taps t, depth c of A[pixel(r, t)][g, c] * B(g, t, c, n)
//   pixel(r, t) = base(r) + scale(r) * delta(t), where bit t of taps(r) is set; else the term is 0.
// A Rows policy gives base, scale, taps and target of every row r; g is the group.
#pragma once

#include <cstdint>

#include "cuda/kernels/launch.h"

namespace perfconv::cuda {

constexpr int kMostTaps = 32;  // the bits of a row's tap mask

struct GemmArgs {
  const void* a = nullptr;  // rows of a_pitch channels, one a pixel
  int64_t a_pitch = 0;
  const void* b = nullptr;
  int64_t b_group = 0;  // strides of B, in elements; of depth and column one is 1
  int64_t b_tap = 0;
  int64_t b_depth = 0;
  int64_t b_column = 0;
  PackedWeight b_packed;  // for wgmma_gemm.cuh: the same B, which it may read instead
  int depth = 0;          // channels of A in a group
  int columns = 0;        // of the output in a group
  int groups = 1;
  int taps = 1;
  int32_t delta[kMostTaps] = {};  // pixels
  Epilogue epilogue;
  void* output = nullptr;      // rows of groups * columns channels
  bool is_vectorised = false;  // columns, output, bias, residual and base allow 16-byte accesses
  // As output, 16-byte aligned: to be added to instead. Of float32, output and residual too.
  float* image_sums = nullptr;
  float* partials = nullptr;  // sums of split tiles: gemm_workspace bytes
};

// One row of A as gathered. Pixels are counted modulo 2^32: a base outside the image is no pixel by
// itself, but base + scale * delta is one below 2^32 for every tap whose bit is set.
struct GatheredRow {
  uint32_t base = 0;
  int32_t scale = 0;
  uint32_t taps = 0;
  int32_t target = -1;  // row of the output; -1: nothing is stored
};

// The pixel of a tap, modulo 2^32.
constexpr uint32_t gathered_pixel(uint32_t base, int32_t scale, int32_t delta) {
  return base + static_cast<uint32_t>(scale) * static_cast<uint32_t>(delta);
}

// The first element of a pixel's row.
constexpr int64_t row_offset(uint32_t pixel, int64_t pitch) { return int64_t{pixel} * pitch; }

static_assert(row_offset(gathered_pixel(0x7FFF0000u, 1, 0xFFFF), 2048) == 2147483647ll * 2048,
              "elements beyond 2^31, and bytes beyond 2^32, have addresses of their own");
static_assert(gathered_pixel(static_cast<uint32_t>(-65), 1, 65) == 0,
              "the first tap of the first pixel lies in the padding, the last one is pixel 0");
static_assert(gathered_pixel(0x7FFFFFFFu, -1, 65) == 0x7FFFFFBEu, "dgrad walks backwards");

}  // namespace perfconv::cuda
