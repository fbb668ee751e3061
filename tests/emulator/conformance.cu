// One tiny kernel for every instruction on which the kernels of perfconv rest, through the
// product's own wrappers where it has one: random bits in, raw bits out. The same file runs on a
// GPU.
#include <cstdint>

#include "cuda/device/ptx.cuh"
#include "cuda/device/ptx_sm90a.cuh"
#include "features/feature.h"

namespace {

namespace ptx = perfconv::cuda::ptx;

// Every thread gives and takes 32-bit words; in: word w of lane l at [w * 32 + l], out the same.
__device__ uint32_t& word(uint32_t* words, int number) { return words[number * 32 + threadIdx.x]; }
__device__ uint32_t word(const uint32_t* words, int number) {
  return words[number * 32 + threadIdx.x];
}

template <bool kTransposed>
__global__ void matrices(const uint32_t* in, uint32_t* out) {
  __shared__ __align__(16) uint32_t rows[32][4];  // row r of matrix m at 8 m + r
  for (int w = 0; w < 4; ++w) rows[threadIdx.x][w] = in[threadIdx.x * 4 + w];
  __syncwarp();
  uint32_t result[4];
  const uint32_t row = ptx::shared_address(rows[threadIdx.x]);
  kTransposed ? ptx::load_matrices_transposed(result, row) : ptx::load_matrices(result, row);
  for (int w = 0; w < 4; ++w) word(out, w) = result[w];
}

// in: a (4 words), b (2), c (4).
template <class T>
__global__ void multiply_add(const uint32_t* in, uint32_t* out) {
  uint32_t a[4];
  uint32_t b[2];
  float c[4];
  for (int w = 0; w < 4; ++w) a[w] = word(in, w);
  for (int w = 0; w < 2; ++w) b[w] = word(in, 4 + w);
  for (int w = 0; w < 4; ++w) c[w] = __uint_as_float(word(in, 6 + w));
  ptx::multiply_add<T>(c, a, b);
  for (int w = 0; w < 4; ++w) word(out, w) = __float_as_uint(c[w]);
}

__global__ void copy_16(const uint32_t* in, uint32_t* out) {
  __shared__ __align__(16) uint32_t rows[32][4];
  ptx::copy_16_async(ptx::shared_address(rows[threadIdx.x]), in + threadIdx.x * 4,
                     threadIdx.x % 3 != 0);
  ptx::commit_copies();
  ptx::wait_copies<0>();
  for (int w = 0; w < 4; ++w) word(out, w) = rows[threadIdx.x][w];
}

// Sizes 4, 8 and 16 with every size of the source: lane l copies l % (size + 1) bytes.
template <int kBytes>
__global__ void copy_part(const uint32_t* in, uint32_t* out) {
  __shared__ __align__(16) uint32_t rows[32][4];
  for (int w = 0; w < 4; ++w) rows[threadIdx.x][w] = 0xAAAAAAAAu;
  __syncwarp();
  const uint32_t valid = threadIdx.x % (kBytes + 1);
  asm volatile(
      "cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(ptx::shared_address(rows[threadIdx.x])),
      "l"(in + threadIdx.x * 4), "n"(kBytes), "r"(valid)
      : "memory");
  asm volatile("cp.async.wait_all;" ::: "memory");
  for (int w = 0; w < 4; ++w) word(out, w) = rows[threadIdx.x][w];
}

__global__ void rounding(const uint32_t* in, uint32_t* out) {
  word(out, 0) = ptx::round_to_tf32(word(in, 0));
}

// All modes of shfl at one width: value, and whether the lane read was in range.
template <int kWidth>
__global__ void shuffles(const uint32_t* in, uint32_t* out) {
  const uint32_t value = word(in, 0);
  const int distance = static_cast<int>(word(in, 1) & 31);
  const int uniform = __shfl_sync(~0u, distance, 5);
  word(out, 0) = __shfl_sync(~0u, value, distance, kWidth);
  word(out, 1) = __shfl_up_sync(~0u, value, uniform, kWidth);
  word(out, 2) = __shfl_down_sync(~0u, value, uniform, kWidth);
  word(out, 3) = __shfl_xor_sync(~0u, value, uniform, kWidth);
  uint32_t is_inside;
  asm volatile(
      "{\n.reg .pred p;\n.reg .b32 v;\nshfl.sync.up.b32 v|p, %1, %2, %3, -1;\n"
      "selp.u32 %0, 1, 0, p;\n}"
      : "=r"(is_inside)
      : "r"(value), "r"(uniform), "n"((32 - kWidth) << 8));
  word(out, 4) = is_inside;
}

// Bulk copies of 48 and 464 bytes, turned round on the way; another thread waits for them.
__global__ void bulk_copies(const uint32_t* in, uint32_t* out) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  __shared__ __align__(16) uint32_t words[128];
  __shared__ uint64_t barrier;
  const uint32_t address = ptx::shared_address(&barrier);
  if (threadIdx.x == 0) ptx::start_barrier(address, 32);
  __syncthreads();
  if (threadIdx.x == 0) {
    const uint32_t place = ptx::shared_address(words);
    ptx::expect_bytes(address, 512);
    ptx::copy_bulk_async(place + 464, in, 48, address);
    ptx::copy_bulk_async(place, in + 12, 464, address);
  }
  ptx::arrive(address);
  ptx::wait_for_phase(address, 0);
  for (int w = 0; w < 4; ++w) word(out, w) = words[w * 32 + threadIdx.x];
#endif
}

// Both halves of the warp by themselves: collectives with a member mask.
__global__ void collectives(const uint32_t* in, uint32_t* out) {
  const uint32_t value = word(in, 0);
  const uint32_t few = value & 3;
  const uint32_t members = threadIdx.x < 16 ? 0x0000FFFFu : 0xFFFF0000u;
  word(out, 0) = __ballot_sync(members, (value & 4) != 0);
  word(out, 1) = __any_sync(members, (value & 0xF0) == 0x30) != 0;
  word(out, 2) = __all_sync(members, (value & 0xF0) != 0x30) != 0;
  word(out, 3) = __match_any_sync(members, few);
  int is_same = 0;
  word(out, 4) = __match_all_sync(members, few & 1, &is_same);
  word(out, 5) = is_same != 0;
  word(out, 6) = __reduce_add_sync(members, value);
  word(out, 7) = static_cast<uint32_t>(__reduce_min_sync(members, static_cast<int>(value)));
  word(out, 8) = __reduce_max_sync(members, value);
  word(out, 9) = __reduce_and_sync(members, value | 0x00FF00FFu);
  word(out, 10) = __reduce_or_sync(members, value & 0x01010101u);
  word(out, 11) = __reduce_xor_sync(members, value);
}

// When they are there: out[e * 128 + t].
template <int kSums>
__device__ __forceinline__ void store_products(float (&sums)[kSums], float* out) {
  ptx::commit_products();
  ptx::wait_products<0>();
  ptx::pin(sums);
#pragma unroll
  for (int e = 0; e < kSums; ++e) out[e * 128 + threadIdx.x] = sums[e];
}

// sums (64 x columns) = a (64 x 64, K-major) b (64 x columns), as each thread holds them: out[e *
// 128
// + t]. b has the columns as rows, or with kIsBNMajor the depths; a with kIsAMMajor the depths as
// rows. Only sm_90a multiplies.
template <class T, bool kIsAMMajor, bool kIsBNMajor, int kSums>
__global__ void __launch_bounds__(128) products(const uint4* a, const uint4* b, float* out) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  constexpr int kColumns = 2 * kSums;
  extern __shared__ __align__(1024) uint4 tiles[];
  uint4* b_tile = tiles + 64 * 8;
  const auto t = static_cast<int>(threadIdx.x);
  const auto place = [](int row, int chunk) { return row * 8 + (chunk ^ row % 8); };
  for (int i = t; i < 64 * 8; i += 128) tiles[place(i / 8, i % 8)] = a[i];
  for (int i = t; i < kColumns * 8; i += 128) {
    if (kIsBNMajor) {
      const int depth = i / (kColumns / 8);
      const int chunk = i % (kColumns / 8);
      b_tile[chunk / 8 * 64 * 8 + place(depth, chunk % 8)] = b[i];
    } else {
      b_tile[place(i / 8, i % 8)] = b[i];
    }
  }
  ptx::fence_async_proxy();
  __syncthreads();
  const uint64_t a_operand = ptx::operand_descriptor(ptx::shared_address(tiles), 0);
  const uint64_t b_operand = ptx::operand_descriptor(ptx::shared_address(b_tile), 64 * 128);
  float sums[kSums] = {};
  ptx::fence_sums();
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    ptx::multiply_add_async<T, kIsAMMajor, kIsBNMajor>(sums, a_operand + (kIsAMMajor ? 128 : 2) * k,
                                                       b_operand + (kIsBNMajor ? 128 : 2) * k);
  }
  store_products(sums, out);
#endif
}

// The same with tf32: a (64 x 32) from registers, b (columns x 32) K-major.
template <int kSums>
__global__ void __launch_bounds__(128) tf32_products(const uint4* a, const uint4* b, float* out) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) uint4 tiles[];
  uint4* b_tile = tiles + 64 * 8;
  const auto t = static_cast<int>(threadIdx.x);
  const auto place = [](int row, int chunk) { return row * 8 + (chunk ^ row % 8); };
  for (int i = t; i < 64 * 8; i += 128) tiles[place(i / 8, i % 8)] = a[i];
  for (int i = t; i < 2 * kSums * 8; i += 128) b_tile[place(i / 8, i % 8)] = b[i];
  ptx::fence_async_proxy();
  __syncthreads();
  uint32_t rows[4][4];
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const int row = t / 32 * 16 + t % 16;
    ptx::load_matrices(rows[k], ptx::shared_address(&tiles[place(row, 2 * k + t % 32 / 16)]));
    ptx::pin(rows[k]);
  }
  const uint64_t b_operand = ptx::operand_descriptor(ptx::shared_address(b_tile), 0);
  float sums[kSums] = {};
  ptx::fence_sums();
#pragma unroll
  for (int k = 0; k < 4; ++k) ptx::multiply_add_async(sums, rows[k], b_operand + 2 * k);
  store_products(sums, out);
#endif
}

// Four blocks of a warp in one cluster. in: four words a lane and block, (block * 4 + word); every
// lane takes those of the next lane in the next block.
constexpr unsigned kClusterBlocks = 4;
__global__ void cluster_exchange(const uint32_t* in, uint32_t* out) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  __shared__ __align__(16) uint32_t rows[32][4];
  const auto rank = static_cast<int>(ptx::cluster_rank());
  for (int w = 0; w < 4; ++w) rows[threadIdx.x][w] = word(in, rank * 4 + w);
  ptx::sync_cluster();
  const uint32_t there = ptx::address_in_cluster(ptx::shared_address(rows[(threadIdx.x + 1) % 32]),
                                                 (rank + 1) % ptx::cluster_blocks());
  const float4 values = ptx::load_from_cluster(there);
  ptx::sync_cluster();
  word(out, rank * 4) = __float_as_uint(values.x);
  word(out, rank * 4 + 1) = __float_as_uint(values.y);
  word(out, rank * 4 + 2) = __float_as_uint(values.z);
  word(out, rank * 4 + 3) = __float_as_uint(values.w);
#endif
}

cudaError_t run_cluster(const Arguments& a) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {kClusterBlocks, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(kClusterBlocks);
  config.blockDim = dim3(32);
  config.stream = a.stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, cluster_exchange, a.at<uint32_t>(0), a.at<uint32_t>(1));
}

using ProductsKernel = void (*)(const uint4*, const uint4*, float*);
cudaError_t run_products_kernel(ProductsKernel kernel, int columns, const Arguments& a) {
  const int bytes = (64 + columns) * 128;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  kernel<<<1, 128, bytes, a.stream>>>(a.at<uint4>(0), a.at<uint4>(1), a.at<float>(2));
  return cudaGetLastError();
}

using Kernel = void (*)(const uint32_t*, uint32_t*);
template <Kernel kKernel>
cudaError_t run(const Arguments& a) {
  kKernel<<<1, 32, 0, a.stream>>>(a.at<uint32_t>(0), a.at<uint32_t>(1));
  return cudaGetLastError();
}

template <class T, bool kIsAMMajor, bool kIsBNMajor, int kSums>
cudaError_t run_products(const Arguments& a) {
  return run_products_kernel(products<T, kIsAMMajor, kIsBNMajor, kSums>, 2 * kSums, a);
}

template <int kSums>
cudaError_t run_tf32_products(const Arguments& a) {
  return run_products_kernel(tf32_products<kSums>, 2 * kSums, a);
}

const Feature kList[] = {
    {"ldmatrix", run<matrices<false>>},
    {"ldmatrix_trans", run<matrices<true>>},
    {"mma_bf16", run<multiply_add<__nv_bfloat16>>},
    {"mma_f16", run<multiply_add<__half>>},
    {"mma_tf32", run<multiply_add<float>>},
    {"copy_16", run<copy_16>},
    {"copy_4_part", run<copy_part<4>>},
    {"copy_8_part", run<copy_part<8>>},
    {"copy_16_part", run<copy_part<16>>},
    {"bulk_copies", run<bulk_copies>},
    {"cluster_exchange", run_cluster},
    {"round_to_tf32", run<rounding>},
    {"shuffles_32", run<shuffles<32>>},
    {"shuffles_16", run<shuffles<16>>},
    {"shuffles_8", run<shuffles<8>>},
    {"collectives", run<collectives>},
    {"wgmma_bf16_64", run_products<__nv_bfloat16, false, false, 32>},
    {"wgmma_bf16_128", run_products<__nv_bfloat16, false, false, 64>},
    {"wgmma_bf16_256", run_products<__nv_bfloat16, false, false, 128>},
    {"wgmma_f16_64", run_products<__half, false, false, 32>},
    {"wgmma_f16_128", run_products<__half, false, false, 64>},
    {"wgmma_f16_256", run_products<__half, false, false, 128>},
    {"wgmma_tf32_64", run_tf32_products<32>},
    {"wgmma_tf32_128", run_tf32_products<64>},
    {"wgmma_tf32_256", run_tf32_products<128>},
    {"wgmma_bf16_64_n_major", run_products<__nv_bfloat16, false, true, 32>},
    {"wgmma_bf16_128_n_major", run_products<__nv_bfloat16, false, true, 64>},
    {"wgmma_bf16_256_n_major", run_products<__nv_bfloat16, false, true, 128>},
    {"wgmma_f16_64_n_major", run_products<__half, false, true, 32>},
    {"wgmma_f16_128_n_major", run_products<__half, false, true, 64>},
    {"wgmma_bf16_64_m_n_major", run_products<__nv_bfloat16, true, true, 32>},
    {"wgmma_bf16_128_m_n_major", run_products<__nv_bfloat16, true, true, 64>},
    {"wgmma_f16_64_m_n_major", run_products<__half, true, true, 32>},
    {"wgmma_f16_128_m_n_major", run_products<__half, true, true, 64>},
    {"wgmma_f16_256_n_major", run_products<__half, false, true, 128>},
};
const Features kFeatures(kList);

}  // namespace
