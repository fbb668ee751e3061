// The receptive fields of the active pixels as rows of a matrix (im2col), and the sum of such rows
// back into an image (col2im).
//
// One thread an element in a grid-stride loop; neighbouring threads take neighbouring elements of
// what is written. col2im gathers: it visits the taps of an input pixel in order, so each sum has
// one order and needs no atomics. Any shape, group count and dtype.
#include "cuda/device/element.cuh"
#include "cuda/device/grad_geometry.cuh"
#include "cuda/device/grid.cuh"
#include "cuda/device/receptive_field.cuh"
#include "cuda/kernels/launch.h"

namespace perfconv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerMultiprocessor = 8;
constexpr int kLeastBlocks = 3;  // resident: 80 registers a thread, no spills

template <class T>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    im2col_kernel(const T* __restrict__ input, const __grid_constant__ ConvGeometry g,
                  const ActiveArgs active, bool is_tap_fastest, T* __restrict__ columns) {
  const int64_t threads = int64_t{gridDim.x} * kThreads;
  const int64_t taps = g.taps();
  const int64_t group_in = g.in_channels / g.groups;
  const int64_t width = g.in_channels * taps;
  const int64_t elements = *active.count * width;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < elements; i += threads) {
    const int64_t row = i / width;
    const int64_t group = (i - row * width) / (group_in * taps);
    const int64_t place = i % (group_in * taps);
    const int64_t tap = is_tap_fastest ? place % taps : place / group_in;
    const int64_t channel = is_tap_fastest ? place / taps : place % group_in;
    const Receptive field = receptive_field(g, active.idx[row]);
    const int64_t y = field.y + tap / g.kernel_width * g.dilation_h;
    const int64_t x = field.x + tap % g.kernel_width * g.dilation_w;
    const bool is_inside = y >= 0 && y < g.in_height && x >= 0 && x < g.in_width;
    const int64_t pixel = (field.image * g.in_height + y) * g.in_width + x;
    columns[i] = is_inside ? input[pixel * g.in_channels + group * group_in + channel]
                           : from_sum<T>(SumType<T>(0));
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    col2im_kernel(const SumType<T>* __restrict__ columns, const __grid_constant__ ConvGeometry g,
                  const int32_t* __restrict__ row_of, T* __restrict__ image) {
  const int64_t threads = int64_t{gridDim.x} * kThreads;
  const int64_t taps = g.taps();
  const int64_t group_in = g.in_channels / g.groups;
  const int64_t elements = g.in_pixels() * g.in_channels;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < elements; i += threads) {
    const int64_t position = i / g.in_channels;
    const int64_t channel = i - position * g.in_channels;
    const InputPixel pixel = input_pixel(g, position);
    const int32_t* image_rows = row_of + output_begin(g, pixel);
    const SumType<T>* group = columns + channel / group_in * group_in * taps + channel % group_in;
    SumType<T> sum = 0;
    for (int kh = 0; kh < g.kernel_height; ++kh) {
      for (int kw = 0; kw < g.kernel_width; ++kw) {
        const int output = output_position(g, pixel, kh, kw);
        const int64_t row = output < 0 ? -1 : image_rows[output];
        const int64_t tap = kh * g.kernel_width + kw;
        if (row >= 0) sum += group[row * g.in_channels * taps + tap * group_in];
      }
    }
    image[i] = from_sum<T>(sum);
  }
}

}  // namespace

cudaError_t launch_im2col(const LaunchContext& context, StorageType storage,
                          const ConvGeometry& geometry, const void* input, const ActiveArgs& active,
                          bool is_tap_fastest, void* columns) {
  const int64_t elements = active.capacity * geometry.in_channels * geometry.taps();
  if (elements == 0) return cudaSuccess;
  const unsigned blocks = grid_blocks(context, elements, kThreads, kBlocksPerMultiprocessor);
  return visit_storage(storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    im2col_kernel<T><<<blocks, kThreads, 0, context.stream>>>(
        static_cast<const T*>(input), geometry, active, is_tap_fastest, static_cast<T*>(columns));
    return cudaGetLastError();
  });
}

cudaError_t launch_col2im(const LaunchContext& context, StorageType storage,
                          const ConvGeometry& geometry, const void* columns, const int32_t* row_of,
                          void* image) {
  const int64_t elements = geometry.in_pixels() * geometry.in_channels;
  if (elements == 0) return cudaSuccess;
  const unsigned blocks = grid_blocks(context, elements, kThreads, kBlocksPerMultiprocessor);
  return visit_storage(storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    col2im_kernel<T><<<blocks, kThreads, 0, context.stream>>>(
        static_cast<const SumType<T>*>(columns), geometry, row_of, static_cast<T*>(image));
    return cudaGetLastError();
  });
}

}  // namespace perfconv::cuda
