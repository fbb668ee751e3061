// Asynchronous copies: cp.async groups, and for sm_90a mbarrier, cp.async.bulk and wgmma.
#include <cuda_fp16.h>

#include <cstdint>

#include "feature.h"

namespace {

__device__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

enum class Waiting { kRight, kNone, kOneTooMany, kNoBarrier };

// Two groups of copies by every thread; the first is read while the second is in flight.
__global__ void copy_groups(const int4* in, int4* out, Waiting waiting) {
  __shared__ int4 values[2][64];
  const unsigned t = threadIdx.x;
  for (int group = 0; group < 2; ++group) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\ncp.async.commit_group;" ::"r"(
                     shared_address(&values[group][t])),
                 "l"(in + group * 64 + t)
                 : "memory");
  }
  if (waiting == Waiting::kOneTooMany) {
    asm volatile("cp.async.wait_group 2;" ::: "memory");
  } else if (waiting != Waiting::kNone) {
    asm volatile("cp.async.wait_group 1;" ::: "memory");
  }
  if (waiting != Waiting::kNoBarrier) __syncthreads();
  out[t] = values[0][63 - t];
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncthreads();
  out[64 + t] = values[1][63 - t];
}

__global__ void forgotten_copy(const int4* in) {
  __shared__ int4 values[32];
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\ncp.async.commit_group;" ::"r"(
                   shared_address(&values[threadIdx.x])),
               "l"(in + threadIdx.x)
               : "memory");
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
__global__ void ring(const __half*, const __half*, float*, int) {}
__global__ void narrow(const uint4*, const uint4*, float*) {}
template <bool kTransposed>
__global__ void matrix_round_trip(const uint4*, uint4*) {}
#else

constexpr int kStages = 2;
constexpr int kTile = 64 * 64;  // halves, 64 rows of 128 bytes

// 128-byte rows, K-major, swizzled; eight rows are 1024 bytes apart.
__device__ uint64_t descriptor(const void* tile) {
  return (shared_address(tile) & 0x3FFFF) >> 4 | uint64_t{1} << 16 | uint64_t{64} << 32 |
         uint64_t{1} << 62;
}

// d (64 x 64) += a b^T over 16 elements of K.
__device__ void multiply(float (&d)[32], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, "
      "%10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, "
      "%28, %29, %30, %31}, %32, %33, 1, 1, 1, 0, 0;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
        "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
        "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
        "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
        "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
      : "l"(a), "l"(b));
}

__device__ void wait_for(uint64_t* barrier, int parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
      "@!done bra again;\n}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// out (64 x 64) = a b^T, K = 64 steps. a: rows of K; b: for each step the swizzled image of its
// tile. A comes by cp.async, B by one bulk copy a step.
__global__ void __launch_bounds__(128)
    ring(const __half* a, const __half* b, float* out, int steps) {
  extern __shared__ __align__(1024) __half tiles[];
  __half* a_tiles = tiles;
  __half* b_tiles = tiles + kStages * kTile;
  __shared__ uint64_t full[kStages];
  const int t = static_cast<int>(threadIdx.x);
  if (t < kStages) {
    asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(shared_address(&full[t])) : "memory");
  }
  __syncthreads();
  auto load = [&](int step) {
    const int stage = step % kStages;
    for (int i = t; i < 64 * 8; i += 128) {
      const int row = i / 8;
      const int chunk = i % 8;
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(
                       a_tiles + stage * kTile + row * 64 + (chunk ^ (row & 7)) * 8)),
                   "l"(a + (row * steps + step) * 64 + chunk * 8)
                   : "memory");
    }
    if (t != 0) return;
    const uint32_t barrier = shared_address(&full[stage]);
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(kTile * 2)
                 : "memory");
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, "
        "[%3];" ::"r"(shared_address(b_tiles + stage * kTile)),
        "l"(b + step * kTile), "r"(kTile * 2), "r"(barrier)
        : "memory");
  };
  float sums[32] = {};
  load(0);
  asm volatile("cp.async.commit_group;" ::: "memory");
  for (int step = 0; step < steps; ++step) {
    asm volatile("cp.async.wait_group 0;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();  // the stage is readable, and the other one is no longer read
    if (step + 1 < steps) load(step + 1);
    asm volatile("cp.async.commit_group;" ::: "memory");
    wait_for(&full[step % kStages], step / kStages & 1);
    const __half* a_tile = a_tiles + step % kStages * kTile;
    const __half* b_tile = b_tiles + step % kStages * kTile;
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    for (int k = 0; k < 4; ++k)
      multiply(sums, descriptor(a_tile) + 2 * k, descriptor(b_tile) + 2 * k);
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    for (float& sum : sums) asm volatile("" : "+f"(sum)::"memory");
  }
  for (int i = 0; i < 32; ++i) {
    const int row = t / 32 * 16 + t % 32 / 4 + (i >> 1 & 1) * 8;
    out[row * 64 + i / 4 * 8 + t % 4 * 2 + (i & 1)] = sums[i];
  }
}

// Four matrices through ldmatrix and stmatrix: out is in.
template <bool kTransposed>
__global__ void matrix_round_trip(const uint4* in, uint4* out) {
  __shared__ uint4 rows[2][32];
  uint32_t m[4];
  rows[0][threadIdx.x] = in[threadIdx.x];
  __syncwarp();
  const uint32_t from = shared_address(&rows[0][threadIdx.x]);
  const uint32_t to = shared_address(&rows[1][threadIdx.x]);
  if (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(from)
                 : "memory");
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to),
                 "r"(m[0]), "r"(m[1]), "r"(m[2]), "r"(m[3])
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(from)
                 : "memory");
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to),
                 "r"(m[0]), "r"(m[1]), "r"(m[2]), "r"(m[3])
                 : "memory");
  }
  __syncwarp();
  out[threadIdx.x] = rows[1][threadIdx.x];
}

// The smallest shape: out (64 x 8) = a (64 x 64) b (8 x 64)^T, bfloat16.
__global__ void __launch_bounds__(128) narrow(const uint4* a, const uint4* b, float* out) {
  __shared__ __align__(1024) uint4 a_tile[64 * 8];
  __shared__ __align__(1024) uint4 b_tile[8 * 8];
  const int t = static_cast<int>(threadIdx.x);
  for (int i = t; i < 64 * 8; i += 128) a_tile[i / 8 * 8 + (i % 8 ^ (i / 8 & 7))] = a[i];
  if (t < 64) b_tile[t / 8 * 8 + (t % 8 ^ (t / 8 & 7))] = b[t];
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  float d[4] = {};
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
  for (int k = 0; k < 4; ++k) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, %4, %5, 1, 1, 1, 0, "
        "0;"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "l"(descriptor(a_tile) + 2 * k), "l"(descriptor(b_tile) + 2 * k));
  }
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  for (int i = 0; i < 4; ++i) {
    asm volatile("" : "+f"(d[i])::"memory");
    out[(t / 32 * 16 + t % 32 / 4 + i / 2 * 8) * 8 + t % 4 * 2 + i % 2] = d[i];
  }
}
#endif

cudaError_t done() { return cudaGetLastError(); }

const Feature kList[] = {
    {"copy_groups",
     [](const Arguments& a) {
       copy_groups<<<1, 64, 0, a.stream>>>(a.at<int4>(0), a.at<int4>(1),
                                           static_cast<Waiting>(a.number[0]));
       return done();
     }},
    {"forgotten_copy",
     [](const Arguments& a) {
       forgotten_copy<<<1, 32, 0, a.stream>>>(a.at<int4>(0));
       return done();
     }},
    {"ring",
     [](const Arguments& a) {
       constexpr int kBytes = 4 * 64 * 64 * 2;
       const cudaError_t error =
           cudaFuncSetAttribute(ring, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
       if (error != cudaSuccess) return error;
       ring<<<1, 128, kBytes, a.stream>>>(a.at<__half>(0), a.at<__half>(1), a.at<float>(2),
                                          a.number[0]);
       return done();
     }},
    {"matrix_round_trip",
     [](const Arguments& a) {
       auto* kernel = a.number[0] != 0 ? matrix_round_trip<true> : matrix_round_trip<false>;
       kernel<<<1, 32, 0, a.stream>>>(a.at<uint4>(0), a.at<uint4>(1));
       return done();
     }},
    {"narrow",
     [](const Arguments& a) {
       narrow<<<1, 128, 0, a.stream>>>(a.at<uint4>(0), a.at<uint4>(1), a.at<float>(2));
       return done();
     }},
};
const Features kFeatures(kList);

}  // namespace
