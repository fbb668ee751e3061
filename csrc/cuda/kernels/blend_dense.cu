// Turns a dense convolution into the perforated one, in place: residual and activation at active
// pixels, zero or base elsewhere.
//
// One thread a run of neighbouring channels, in a grid-stride loop over all pixels: 16 bytes where
// rows are aligned, else one element. Runs that stay as they are are neither read nor written.
#include "cuda/device/epilogue.cuh"
#include "cuda/device/fill.cuh"
#include "cuda/device/grid.cuh"
#include "cuda/kernels/launch.h"

namespace perfconv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerMultiprocessor = 8;

template <class T, int kSize>
__global__ void __launch_bounds__(kThreads)
    blend_active_kernel(const __grid_constant__ MaskArgs mask,
                        const __grid_constant__ Epilogue epilogue, int64_t channels, T* image) {
  const int64_t runs_of_pixel = channels / kSize;
  const int64_t runs = mask.pixels() * runs_of_pixel;
  const int64_t threads = int64_t{gridDim.x} * kThreads;
  for (int64_t run = int64_t{blockIdx.x} * kThreads + threadIdx.x; run < runs; run += threads) {
    if (!is_active(mask, run / runs_of_pixel)) continue;
    Run<T, kSize> value = load_run<T, kSize>(image, run * kSize);
    Run<T, kSize> residual{};
    if (epilogue.residual != nullptr) residual = load_run<T, kSize>(epilogue.residual, run * kSize);
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      const auto sum = to_sum(value.values[i]) + to_sum(residual.values[i]);
      value.values[i] = from_sum<T>(activate(sum, epilogue.activation));
    }
    store_run(image, run * kSize, value);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    blend_fill_kernel(const __grid_constant__ MaskArgs mask,
                      const __grid_constant__ Epilogue epilogue, int64_t channels,
                      bool is_vectorised, T* image) {
  fill_inactive<T>(mask, epilogue, channels, is_vectorised, image);
}

template <class T, int kSize>
void launch_active(const LaunchContext& context, const MaskArgs& mask, const Epilogue& epilogue,
                   int64_t channels, T* image) {
  const unsigned blocks =
      grid_blocks(context, mask.pixels() * channels / kSize, kThreads, kBlocksPerMultiprocessor);
  blend_active_kernel<T, kSize>
      <<<blocks, kThreads, 0, context.stream>>>(mask, epilogue, channels, image);
}

}  // namespace

cudaError_t launch_blend(const LaunchContext& context, StorageType storage, const MaskArgs& mask,
                         const Epilogue& epilogue, int64_t channels, void* image) {
  if (mask.pixels() * channels == 0) return cudaSuccess;
  return visit_storage(storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    auto* elements = static_cast<T*>(image);
    const bool is_vectorised = is_vector_image<T>(channels, epilogue, image);
    if (epilogue.residual != nullptr || epilogue.activation != Activation::kNone) {
      is_vectorised ? launch_active<T, kRunSize<T>>(context, mask, epilogue, channels, elements)
                    : launch_active<T, 1>(context, mask, epilogue, channels, elements);
    }
    if (!leaves_inactive(epilogue.fill)) {
      const unsigned blocks = grid_blocks(context, mask.pixels() * channels, kThreads * kRunSize<T>,
                                          kBlocksPerMultiprocessor);
      blend_fill_kernel<T><<<blocks, kThreads, 0, context.stream>>>(mask, epilogue, channels,
                                                                    is_vectorised, elements);
    }
    return cudaGetLastError();
  });
}

}  // namespace perfconv::cuda
