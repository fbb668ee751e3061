// Layout conversion is a matrix transposition per image: (channels x pixels) to (pixels x channels)
// or back.
#include "cpu/layout.h"

#include <algorithm>

#include "cpu/images.h"
#include "cpu/kernels/kernel_table.h"

namespace perfconv::cpu {
namespace {

constexpr int64_t kBlock = 64;  // a block of floats and its transpose are 32 KiB

// to[c][r] = from[r][c] for one block.
template <class T>
void transpose_block(const T* from, int64_t from_stride, T* to, int64_t to_stride, int64_t rows,
                     int64_t columns) {
  if constexpr (std::is_same_v<T, float>) {
    const float* from_rows[kBlock];
    float* to_rows[kBlock];
    for (int64_t r = 0; r < rows; ++r) from_rows[r] = from + r * from_stride;
    for (int64_t c = 0; c < columns; ++c) to_rows[c] = to + c * to_stride;
    kernels().transpose(from_rows, rows, to_rows, columns);
  } else {
    constexpr int64_t kStep =
        8;  // 8 x 8 at a time: whole stretches of both sides stay in registers
    for (int64_t r0 = 0; r0 < rows; r0 += kStep) {
      const int64_t r1 = std::min(rows, r0 + kStep);
      for (int64_t c = 0; c < columns; ++c) {
        for (int64_t r = r0; r < r1; ++r) to[c * to_stride + r] = from[r * from_stride + c];
      }
    }
  }
}

// (batch, rows, columns) to (batch, columns, rows).
template <class T>
void transpose_images(const T* from, int64_t batch, int64_t rows, int64_t columns, T* to) {
  const int64_t blocks = (columns + kBlock - 1) / kBlock;
  parallel_rows(batch * blocks, kBlock * rows / 2, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t offset = item / blocks * rows * columns;
      const int64_t c = item % blocks * kBlock;
      for (int64_t r = 0; r < rows; r += kBlock) {
        transpose_block(from + offset + r * columns + c, columns, to + offset + c * rows + r, rows,
                        std::min(kBlock, rows - r), std::min(kBlock, columns - c));
      }
    }
  });
}

Tensor transposed(const Tensor& image, bool channels_last) {
  const Tensor result = empty_image(image, size_vector(image), channels_last);
  const int64_t channels = image.size(1);
  const int64_t pixels = image.size(2) * image.size(3);
  visit_dtype("layout", image.scalar_type(), [&]<class T>() {
    transpose_images(data<T>(image), image.size(0), channels_last ? channels : pixels,
                     channels_last ? pixels : channels, mutable_data<T>(result));
  });
  return result;
}

// Whether an image lies in memory as (N, H, W, C) without gaps; a side of 1 may have any stride.
bool is_rows_of_channels(const Tensor& image) {
  int64_t expected = 1;
  for (const int64_t side : {1, 3, 2, 0}) {
    if (image.size(side) != 1 && image.stride(side) != expected) return false;
    expected *= image.size(side);
  }
  return expected > 0;
}

}  // namespace

Tensor in_order(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

Tensor to_channels_last(const Tensor& image) {
  if (is_rows_of_channels(image)) return image;
  const bool is_plain = image.is_contiguous() && image.size(1) > 1 && image.numel() > 0 &&
                        image.size(2) * image.size(3) > 1;
  if (is_plain) return transposed(image, true);
  return torch::stable::contiguous(image, MemoryFormat::ChannelsLast);
}

Tensor to_contiguous(const Tensor& image) {
  if (image.is_contiguous()) return image;
  return is_rows_of_channels(image) ? transposed(image, false) : torch::stable::contiguous(image);
}

Tensor in_layout(const Tensor& image, bool channels_last) {
  return channels_last ? image : to_contiguous(image);
}

}  // namespace perfconv::cpu
