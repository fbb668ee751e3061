// Direct input gradient: dX[q, c] = sum over taps t and channels n of dY[p, n] w[n, t, c], where p
// is the active output pixel that reads q through t.
//
// grid: (pixels of a line / 8, lines, images); a warp takes a pixel, its lanes neighbouring
// channels. No shared memory, and no division to find the pixel: inputs may have more than 2^32 of
// them. Any shape, group count and dtype: the readable reference on the device, and the only
// float64 path. Pixels that no active output reads get 0.
#include "cuda/device/element.cuh"
#include "cuda/device/grad_geometry.cuh"
#include "cuda/device/grid.cuh"
#include "cuda/kernels/launch.h"

namespace perfconv::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kLeastBlocks = 2;  // resident on a multiprocessor: 128 registers, no spills

template <class T>
__device__ SumType<T> gather_gradient(const GradArgs& args, const InputPixel& pixel, int channel) {
  const ConvGeometry& g = args.geometry;
  const auto group_in = static_cast<int>(g.in_channels) / static_cast<int>(g.groups);
  const auto group_out = static_cast<int>(g.out_channels) / static_cast<int>(g.groups);
  const int group = channel / group_in;
  const int64_t pitch = g.taps() * group_in;  // of an output channel in the weight
  const uint8_t* mask = image_mask(args.mask, pixel);
  const T* grad = static_cast<const T*>(args.grad_output) +
                  output_begin(g, pixel) * g.out_channels + int64_t{group} * group_out;
  const T* tap = static_cast<const T*>(args.operand) + group * group_out * pitch +
                 (channel - group * group_in);
  SumType<T> sum = 0;
  for (int kh = 0; kh < g.kernel_height; ++kh) {
    for (int kw = 0; kw < g.kernel_width; ++kw, tap += group_in) {
      const int output = output_position(g, pixel, kh, kw);
      if (output < 0 || mask[output] == 0) continue;
      const T* row = grad + output * g.out_channels;
      for (int n = 0; n < group_out; ++n) sum += to_sum(row[n]) * to_sum(tap[n * pitch]);
    }
  }
  return sum;
}

template <class T>
__global__ void __launch_bounds__(32 * kWarps, kLeastBlocks)
    dgrad_direct_kernel(const __grid_constant__ GradArgs args) {
  const ConvGeometry& g = args.geometry;
  const auto channels = static_cast<int>(g.in_channels);
  const int lane = static_cast<int>(threadIdx.x);
  for (uint32_t image = blockIdx.z; image < g.batch; image += gridDim.z) {
    for (uint32_t y = blockIdx.y; y < g.in_height; y += gridDim.y) {
      const int64_t line = (image * g.in_height + y) * g.in_width;
      for (uint32_t x = blockIdx.x * kWarps + threadIdx.y; x < g.in_width;
           x += gridDim.x * kWarps) {
        const InputPixel pixel = padded_pixel(g, image, y, x);
        T* result = static_cast<T*>(args.result) + (line + x) * channels;
        for (int c = lane; c < channels; c += 32) {
          result[c] = from_sum<T>(gather_gradient<T>(args, pixel, c));
        }
      }
    }
  }
}

}  // namespace

cudaError_t launch_dgrad_direct(const LaunchContext& context, const GradArgs& args) {
  const ConvGeometry& g = args.geometry;
  if (g.in_pixels() == 0) return cudaSuccess;
  constexpr int64_t kMost = 65535;  // blocks along y and z
  const dim3 blocks(static_cast<unsigned>(ceil_div(g.in_width, kWarps)),
                    static_cast<unsigned>(std::min(g.in_height, kMost)),
                    static_cast<unsigned>(std::min(g.batch, kMost)));
  return visit_storage(args.storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    dgrad_direct_kernel<T><<<blocks, dim3(32, kWarps), 0, context.stream>>>(args);
    return cudaGetLastError();
  });
}

}  // namespace perfconv::cuda
