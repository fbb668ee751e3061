// Instructions that only sm_90a has, each behind a function, as in ptx.cuh: barriers in shared
// memory that count arrivals and bytes (mbarrier), copies by the copy engine, shared memory of a
// cluster's blocks, multiplications by a warpgroup (wgmma), registers that move from one warpgroup
// to another. Names in quotes are
// headings of the PTX ISA 9.0 manual.
#pragma once

#include <type_traits>

#include "cuda/device/ptx.cuh"

namespace perfconv::cuda::ptx {

// ---- barriers in shared memory
// --------------------------------------------------------------------

// A phase ends when so many arrivals have been counted; the next one begins at once. Before others
// use the barrier: __syncthreads(). "mbarrier.init".
__device__ __forceinline__ void start_barrier(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Orders this thread's accesses before those behind a wait for the phase. "mbarrier.arrive".
__device__ __forceinline__ void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// An arrival that takes place when all copies (copy_16_async) that this thread has started are
// done; does not wait for that. "cp.async.mbarrier.arrive".
__device__ __forceinline__ void arrive_after_copies(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

// The phase does not end before so many bytes more have arrived by copy_bulk_async. By a thread
// whose own arrival in the phase is still to come. "mbarrier.expect_tx".
__device__ __forceinline__ void expect_bytes(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// Starts a copy of neighbouring bytes from global to shared memory by the copy engine; the bytes
// count at the barrier as they arrive. All three are multiples of 16. Written through the async
// proxy: wgmma reads it without a fence. "cp.async.bulk".
__device__ __forceinline__ void copy_bulk_async(uint32_t destination, const void* source,
                                                uint32_t bytes, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(destination),
      "l"(source), "r"(bytes), "r"(barrier)
      : "memory");
}

// Waits until the phase of that parity has ended; the phases of a barrier are 0, 1, 0, 1 ... The
// one before the first counts as ended. "mbarrier.try_wait".
__device__ __forceinline__ void wait_for_phase(uint32_t barrier, uint32_t parity) {
  uint32_t has_ended;
  do {
    asm volatile(
        "{\n.reg .pred ended;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2;\n"
        "selp.u32 %0, 1, 0, ended;\n}"
        : "=r"(has_ended)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (has_ended == 0);
}

// A barrier of some of the block's warps; 0 is that of __syncthreads(). "bar".
template <int kBarrier, int kThreads>
__device__ __forceinline__ void sync_threads() {
  static_assert(kBarrier > 0 && kBarrier < 16 && kThreads % 32 == 0, "whole warps");
  asm volatile("bar.sync %0, %1;" ::"n"(kBarrier), "n"(kThreads) : "memory");
}

// ---- clusters
// ---------------------------------------------------------------------------------------

// The blocks of this cluster, one where the launch names none, and this one's place among them.
// "%cluster_nctarank", "%cluster_ctarank".
__device__ __forceinline__ uint32_t cluster_blocks() {
  uint32_t blocks;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
  return blocks;
}
__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// Waits for all threads of the cluster, and orders their accesses before those behind: their shared
// memory may be read, or is no longer. By every thread that has not exited. "barrier.cluster".
__device__ __forceinline__ void sync_cluster() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

// What stands at a shared address of this block, in the block of a rank. "mapa".
__device__ __forceinline__ uint32_t address_in_cluster(uint32_t address, uint32_t rank) {
  uint32_t result;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(result) : "r"(address), "r"(rank));
  return result;
}

// Of an address that address_in_cluster gave, a multiple of 16. "ld".
__device__ __forceinline__ float4 load_from_cluster(uint32_t address) {
  float4 result;
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(result.x), "=f"(result.y), "=f"(result.z), "=f"(result.w)
               : "r"(address)
               : "memory");
  return result;
}

// ---- multiplication
// -------------------------------------------------------------------------------

// Shared memory that ordinary stores and copy_16_async have written becomes readable for wgmma: in
// the threads that wrote it, before they arrive, or in those that read it, after they waited.
// "membar/fence".
__device__ __forceinline__ void fence_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// An operand of wgmma in shared memory, rows of 128 bytes whose 16-byte chunks c lie at c ^ row %
// 8; eight rows are 1024 bytes, which the address is a multiple of.
//   K-major: a row of the operand, 64 elements of depth; eight rows further 1024 bytes further. The
//   next 16 of depth: 32 bytes further, the address in the descriptor raised by 2.
//   M- or N-major: a depth, 64 elements of neighbouring rows of the operand; the next 64 rows are
//   block_bytes further. The next 16 of depth: 2048 bytes further, 128 in the descriptor.
// "Matrix descriptor", "Strides".
__device__ __forceinline__ uint64_t operand_descriptor(uint32_t address, uint32_t block_bytes) {
  constexpr uint64_t kSwizzle128 = 1;
  return uint64_t{(address & 0x3FFFF) >> 4} | uint64_t{block_bytes >> 4} << 16 |
         uint64_t{1024 >> 4} << 32 | kSwizzle128 << 62;
}

// Before the first multiplication, and between other accesses to its sums and a multiplication.
// "wgmma.fence".
__device__ __forceinline__ void fence_sums() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// Closes the group of this warpgroup's multiplications since the last call. "wgmma.commit_group".
__device__ __forceinline__ void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until at most kPending groups are unfinished: then the others no longer read shared memory,
// and sums of finished ones may be used. "wgmma.wait_group".
template <int kPending>
__device__ __forceinline__ void wait_products() {
  static_assert(kPending >= 0 && kPending < 8, "a ring has at most eight stages");
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving accesses to sums across this place.
template <int kCount>
__device__ __forceinline__ void pin(float (&sums)[kCount]) {
#pragma unroll
  for (float& sum : sums) asm volatile("" : "+f"(sum)::"memory");
}

// The same for values that a multiplication reads from registers.
template <int kCount>
__device__ __forceinline__ void pin(uint32_t (&values)[kCount]) {
#pragma unroll
  for (uint32_t& value : values) asm volatile("" : "+r"(value)::"memory");
}

// clang-format off
#define PERFCONV_NAMES_32 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, " \
  "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define PERFCONV_NAMES_64 PERFCONV_NAMES_32 ", " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, " \
  "%49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define PERFCONV_NAMES_128 PERFCONV_NAMES_64 ", " \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, " \
  "%81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, " \
  "%98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, " \
  "%126, %127"
#define PERFCONV_SUMS_4(i) "+f"(sums[i]), "+f"(sums[(i) + 1]), "+f"(sums[(i) + 2]), "+f"(sums[(i) + 3])
#define PERFCONV_SUMS_16(i) PERFCONV_SUMS_4(i), PERFCONV_SUMS_4((i) + 4), PERFCONV_SUMS_4((i) + 8), PERFCONV_SUMS_4((i) + 12)
#define PERFCONV_SUMS_32(i) PERFCONV_SUMS_16(i), PERFCONV_SUMS_16((i) + 16)
#define PERFCONV_SUMS_64(i) PERFCONV_SUMS_32(i), PERFCONV_SUMS_32((i) + 32)
#define PERFCONV_SUMS_128(i) PERFCONV_SUMS_64(i), PERFCONV_SUMS_64((i) + 64)
#define PERFCONV_WGMMA(columns, type, count, a_name, b_name, major_names)                       \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" columns "k16.f32." type "." type " {"        \
               PERFCONV_NAMES_##count "}, " a_name ", " b_name ", 1, 1, 1, " major_names ";"    \
               : PERFCONV_SUMS_##count(0)                                                       \
               : "l"(a), "l"(b), "n"(kIsAMMajor ? 1 : 0), "n"(kIsBNMajor ? 1 : 0))
#define PERFCONV_WGMMA_OF(type)                                         \
  if constexpr (kSums == 32) {                                          \
    PERFCONV_WGMMA("64", type, 32, "%32", "%33", "%34, %35");           \
  } else if constexpr (kSums == 64) {                                   \
    PERFCONV_WGMMA("128", type, 64, "%64", "%65", "%66, %67");          \
  } else {                                                              \
    PERFCONV_WGMMA("256", type, 128, "%128", "%129", "%130, %131");     \
  }
#define PERFCONV_WGMMA_TF32(columns, count, a_names, b_name)                                    \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" columns "k8.f32.tf32.tf32 {"                 \
               PERFCONV_NAMES_##count "}, {" a_names "}, " b_name ", 1, 1, 1;"                  \
               : PERFCONV_SUMS_##count(0)                                                       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
// clang-format on

// Starts sums (64 x 2 kSums) += a (64 x 16) * b (16 x 2 kSums), K-major unless said, in the four
// warps of a warpgroup, in float32; a and b are descriptors. Lane l of warp w holds in sums[e] row
// 16 w + l / 4 + 8 (e / 2 % 2), column 8 (e / 4) + 2 (l % 4) + e % 2. "wgmma.mma_async".
template <class T, bool kIsAMMajor, bool kIsBNMajor, int kSums>
__device__ __forceinline__ void multiply_add_async(float (&sums)[kSums], uint64_t a, uint64_t b) {
  static_assert(kSums == 32 || kSums == 64 || kSums == 128, "64, 128 or 256 columns");
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    PERFCONV_WGMMA_OF("bf16")
  } else {
    static_assert(std::is_same_v<T, __half>, "elements of 16 bits");
    PERFCONV_WGMMA_OF("f16")
  }
}

// The same with tf32, eight deep: a in registers, as load_matrices puts 16 rows of 32 bytes into
// those of a warp, b K-major. Of b the low 13 bits are ignored: rounding is the caller's.
template <int kSums>
__device__ __forceinline__ void multiply_add_async(float (&sums)[kSums], const uint32_t (&a)[4],
                                                   uint64_t b) {
  static_assert(kSums == 32 || kSums == 64 || kSums == 128, "64, 128 or 256 columns");
  if constexpr (kSums == 32) {
    PERFCONV_WGMMA_TF32("64", 32, "%32, %33, %34, %35", "%36");
  } else if constexpr (kSums == 64) {
    PERFCONV_WGMMA_TF32("128", 64, "%64, %65, %66, %67", "%68");
  } else {
    PERFCONV_WGMMA_TF32("256", 128, "%128, %129, %130, %131", "%132");
  }
}

#undef PERFCONV_NAMES_32
#undef PERFCONV_NAMES_64
#undef PERFCONV_NAMES_128
#undef PERFCONV_SUMS_4
#undef PERFCONV_SUMS_16
#undef PERFCONV_SUMS_32
#undef PERFCONV_SUMS_64
#undef PERFCONV_SUMS_128
#undef PERFCONV_WGMMA
#undef PERFCONV_WGMMA_OF
#undef PERFCONV_WGMMA_TF32

// ---- registers
// ------------------------------------------------------------------------------------

// By all warps of a warpgroup: from now on at most, or up to, so many registers a thread. The
// kernel needs launch bounds with a number of blocks. "setmaxnreg".
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace perfconv::cuda::ptx
