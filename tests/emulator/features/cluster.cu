// Clusters: neighbours' shared memory, the barrier of a cluster, and what goes wrong without it;
// number[0] is the size of a cluster, number[1] picks the variant.
#include <cstdint>

#include "feature.h"

namespace {

constexpr int kThreads = 64;
constexpr int kClusters = 2;  // of a grid

enum class Order {
  kRight,
  kNoBarrierBefore,   // the neighbour may not have written yet, or not have started
  kNoBarrierAfter,    // it may have exited
  kOverwritten,       // it writes again before all have read
  kRelaxed,           // the barrier does not order
  kWaitsTwice,        // without an arrival between
  kArrivesTwice,      // without a wait between
  kWrongRank,         // of no block
  kOfBlock,           // a barrier of the block only
  kSomeExit,          // half of the threads, before the barrier: it does not wait for them
  kNoWaitBeforeExit,  // arrives only
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
__global__ void exchange_in_cluster(int*, Order) {}
__global__ void cluster_registers(int*) {}
#else

__device__ uint32_t rank() {
  uint32_t result;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(result));
  return result;
}
__device__ uint32_t blocks() {
  uint32_t result;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(result));
  return result;
}
__device__ void arrive() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
__device__ void arrive_relaxed() { asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory"); }
__device__ void wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }
__device__ int load(const int* place, uint32_t of) {
  const auto own = static_cast<uint32_t>(__cvta_generic_to_shared(place));
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(own), "r"(of));
  int result;
  asm volatile("ld.shared::cluster.s32 %0, [%1];" : "=r"(result) : "r"(there) : "memory");
  return result;
}

// Every thread reads what the same one of the next block wrote: 100 x block + thread.
__global__ void exchange_in_cluster(int* out, Order order) {
  __shared__ int values[kThreads];
  const unsigned t = threadIdx.x;
  values[t] = 100 * static_cast<int>(blockIdx.x) + static_cast<int>(t);
  if (order == Order::kSomeExit && t >= kThreads / 2) return;
  if (order == Order::kOfBlock) {
    __syncthreads();
  } else if (order != Order::kNoBarrierBefore) {
    order == Order::kRelaxed ? arrive_relaxed() : arrive();
    if (order == Order::kArrivesTwice) arrive();
    wait();
    if (order == Order::kWaitsTwice) wait();
  }
  const uint32_t next = order == Order::kWrongRank ? blocks() : (rank() + 1) % blocks();
  const int value = load(&values[t], next);
  if (order == Order::kOverwritten) values[t] = 0;
  if (order != Order::kNoBarrierAfter) arrive();
  if (order != Order::kNoBarrierAfter && order != Order::kNoWaitBeforeExit) wait();
  out[blockIdx.x * kThreads + t] = value;
}

__global__ void cluster_registers(int* out) {
  uint32_t id;
  asm volatile("mov.u32 %0, %%clusterid.x;" : "=r"(id));
  int* place = out + blockIdx.x * 3;
  place[0] = static_cast<int>(id);
  place[1] = static_cast<int>(rank());
  place[2] = static_cast<int>(blocks());
}
#endif

template <class... Parameters, class... Values>
cudaError_t launch(const Arguments& a, int threads, void (*kernel)(Parameters...),
                   Values... values) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(a.number[0]);
  attribute.val.clusterDim.y = 1;
  attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(a.number[0] * kClusters + a.number[2]));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = a.stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, values...);
}

const Feature kList[] = {
    {"exchange_in_cluster",
     [](const Arguments& a) {
       return launch(a, kThreads, exchange_in_cluster, a.at<int>(0),
                     static_cast<Order>(a.number[1]));
     }},
    {"cluster_registers",
     [](const Arguments& a) { return launch(a, 1, cluster_registers, a.at<int>(0)); }},
};
const Features kFeatures(kList);

}  // namespace
