// The gate in one read of the input: logits z_j[p] = sum_c x[p, c] w[j, c] + b[j], the decision
// mask[p] = z_1 > z_0, soft[p] = softmax(z)[1], and the list of active pixels.
//
// gate_kernel makes mask and soft, and counts the active pixels of each section of the compaction;
// launch_write_active then lists them (compact_mask.cu). A few neighbouring threads share the row
// of a pixel and take kPixels pixels at once, so that a load of the weights serves all of them;
// loads are 16 bytes where rows are aligned. Sums in float (float64 for float64), one order: along
// the channels of a thread, then a butterfly over the threads of a row. Atomics add integers only.
#include "cuda/device/grid.cuh"
#include "cuda/device/rows.cuh"
#include "cuda/kernels/launch.h"

namespace perfconv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPixels = 4;       // of a thread
constexpr int kLeastBlocks = 3;  // resident: 80 registers a thread, no spills
static_assert(kCompactSection % (kThreads * kPixels) == 0, "a block stays in one section");

template <class Sum>
struct Logits {
  Sum skip = 0;
  Sum compute = 0;
};

// sums[i] += the thread's part of the products of pixel first + i * step with both rows of the
// weight. Beyond the last pixel the last one takes the place, so that every load is legal.
template <class T, int kElements>
__device__ __forceinline__ void add_products(const GateArgs& args, uint32_t first, uint32_t step,
                                             int lane, int row_threads,
                                             Logits<SumType<T>> (&sums)[kPixels]) {
  using Part = Elements<T, kElements>;
  const T* rows[kPixels];
  const auto last = static_cast<uint32_t>(args.pixels() - 1);  // below 2^31
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    rows[i] = static_cast<const T*>(args.input) + min(first + i * step, last) * args.channels;
  }
  const T* weight = static_cast<const T*>(args.weight);
  for (int64_t c = lane * kElements; c < args.channels; c += row_threads * kElements) {
    Part parts[kPixels];
#pragma unroll
    for (int i = 0; i < kPixels; ++i) parts[i] = *reinterpret_cast<const Part*>(rows[i] + c);
    const Part skip = *reinterpret_cast<const Part*>(weight + c);
    const Part compute = *reinterpret_cast<const Part*>(weight + args.channels + c);
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        const SumType<T> value = to_sum(parts[i].values[e]);
        sums[i].skip += value * to_sum(skip.values[e]);
        sums[i].compute += value * to_sum(compute.values[e]);
      }
    }
  }
}

template <class T, int kElements>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    gate_kernel(const __grid_constant__ GateArgs args, int row_threads,
                int32_t* __restrict__ section_counts) {
  using Sum = SumType<T>;
  const int lane = static_cast<int>(threadIdx.x) % row_threads;
  const uint32_t step = kThreads / row_threads;  // pixels that the block takes at once
  const uint32_t block_first = blockIdx.x * step * kPixels;
  const uint32_t first = block_first + threadIdx.x / row_threads;
  Logits<Sum> sums[kPixels];
  add_products<T, kElements>(args, first, step, lane, row_threads, sums);

  const T* bias = static_cast<const T*>(args.bias);
  int active = 0;
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    for (int distance = row_threads / 2; distance > 0; distance /= 2) {
      sums[i].skip += __shfl_xor_sync(~0u, sums[i].skip, distance);
      sums[i].compute += __shfl_xor_sync(~0u, sums[i].compute, distance);
    }
    const int64_t pixel = int64_t{first} + i * step;
    if (lane != 0 || pixel >= args.pixels()) continue;
    const Sum skip = sums[i].skip + (bias != nullptr ? to_sum(bias[0]) : Sum(0));
    const Sum compute = sums[i].compute + (bias != nullptr ? to_sum(bias[1]) : Sum(0));
    const bool is_active = compute > skip;  // NaN: no
    args.mask[pixel] = is_active ? 1 : 0;
    active += is_active ? 1 : 0;
    if (args.soft != nullptr) {
      static_cast<T*>(args.soft)[pixel] = from_sum<T>(Sum(1) / (Sum(1) + exp(skip - compute)));
    }
  }
  active = __reduce_add_sync(~0u, active);
  if (threadIdx.x % 32 == 0 && active != 0) {
    atomicAdd(section_counts + block_first / kCompactSection, active);
  }
}

cudaError_t set_zero(const LaunchContext& context, int32_t* values, int64_t count) {
  if (values == nullptr || count == 0) return cudaSuccess;
  return cudaMemsetAsync(values, 0, static_cast<size_t>(count) * sizeof(int32_t), context.stream);
}

}  // namespace

cudaError_t launch_gate_mask(const LaunchContext& context, const GateArgs& args, void* workspace,
                             int32_t* active_idx, int32_t* count, int32_t* image_counts) {
  const MaskArgs mask{.mask = args.mask,
                      .images = args.images,
                      .height = args.height,
                      .width = args.width,
                      .is_shared = false};
  auto* section_counts = static_cast<int32_t*>(workspace);
  cudaError_t status = set_zero(context, section_counts, ceil_div(args.pixels(), kCompactSection));
  if (status == cudaSuccess) status = set_zero(context, image_counts, args.images);
  if (status == cudaSuccess && args.pixels() > 0) {
    status = visit_storage(args.storage, [&](auto tag) {
      using T = typename decltype(tag)::Type;
      const auto launch = [&](auto elements) {
        constexpr int kElements = decltype(elements)::value;
        const int row_threads = threads_of_row(args.channels / kElements);
        const int64_t pixels = int64_t{kThreads / row_threads} * kPixels;  // of a block
        const auto blocks = static_cast<unsigned>(ceil_div(args.pixels(), pixels));
        gate_kernel<T, kElements>
            <<<blocks, kThreads, 0, context.stream>>>(args, row_threads, section_counts);
        return cudaGetLastError();
      };
      return visit_elements<T>(args.channels, launch, args.input, args.weight);
    });
  }
  if (status != cudaSuccess) return status;
  return launch_write_active(context, mask, workspace, active_idx, count, image_counts);
}

}  // namespace perfconv::cuda
