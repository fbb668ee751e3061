// Barriers, collectives, and accesses that are ordered or are not; number[0] picks the variant.
#include "feature.h"

namespace {

constexpr int kThreads = 64;

enum class Order { kNone, kBarrier, kWarp };

// Every thread reads what its neighbour in the warp wrote.
__global__ void exchange_shared(const int* in, int* out, Order order) {
  __shared__ int values[kThreads];
  const unsigned t = threadIdx.x;
  values[t] = in[t];
  if (order == Order::kBarrier) __syncthreads();
  if (order == Order::kWarp) __syncwarp();
  out[t] = values[t ^ 1];
}

// The same over warps: __syncwarp is not enough.
__global__ void exchange_warps(const int* in, int* out, Order order) {
  __shared__ int values[kThreads];
  const unsigned t = threadIdx.x;
  values[t] = in[t];
  if (order == Order::kBarrier) __syncthreads();
  if (order == Order::kWarp) __syncwarp();
  out[t] = values[t ^ 32];
}

// Written again before all have read.
__global__ void overwrite_shared(int* out, Order order) {
  __shared__ int value;
  for (int round = 0; round < 3; ++round) {
    if (threadIdx.x == 0) value = round;
    __syncthreads();
    out[round * kThreads + threadIdx.x] = value;
    if (order == Order::kBarrier) __syncthreads();
  }
}

// Through global memory of one block.
__global__ void exchange_global(int* scratch, int* out, Order order) {
  const unsigned t = threadIdx.x;
  scratch[t] = static_cast<int>(t);
  if (order == Order::kBarrier) __syncthreads();
  out[t] = scratch[t ^ 33];
}

__global__ void same_place(int* out, int is_atomic) {
  if (is_atomic != 0) {
    atomicAdd(out, 1);
  } else {
    *out = 1;
  }
}

// Bytes of one word by different threads: no race.
__global__ void neighbouring_bytes(unsigned char* out) {
  out[threadIdx.x] = static_cast<unsigned char>(threadIdx.x);
}

enum class Publication { kNothing, kFence, kFenceOfBlock, kReleaseAcquire, kNoBarrier };

// Every block publishes a row; the last to arrive adds all rows up.
__global__ void last_block_sums(int* rows, int* counter, int* out, Publication how) {
  __shared__ bool is_last;
  const unsigned t = threadIdx.x;
  rows[blockIdx.x * blockDim.x + t] = static_cast<int>(blockIdx.x + t);
  if (how != Publication::kNoBarrier) __syncthreads();
  if (t == 0) {
    int before;
    if (how == Publication::kReleaseAcquire) {
      asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], 1;"
                   : "=r"(before)
                   : "l"(counter)
                   : "memory");
    } else {
      if (how == Publication::kFence || how == Publication::kNoBarrier) __threadfence();
      if (how == Publication::kFenceOfBlock) __threadfence_block();
      before = atomicAdd(counter, 1);
      if (how == Publication::kFence || how == Publication::kNoBarrier) __threadfence();
      if (how == Publication::kFenceOfBlock) __threadfence_block();
    }
    is_last = before == static_cast<int>(gridDim.x) - 1;
  }
  __syncthreads();
  if (!is_last) return;
  int sum = 0;
  for (unsigned b = 0; b < gridDim.x; ++b) sum += rows[b * blockDim.x + t];
  out[t] = sum;
}

// Block 0 sets a flag behind a value, the others wait for it.
__global__ void wait_for_flag(int* value, int* flag, int* out, int is_released) {
  if (blockIdx.x == 0) {
    *value = 42;
    if (is_released != 0) {
      asm volatile("st.release.gpu.global.s32 [%0], 1;" ::"l"(flag) : "memory");
    } else {
      *reinterpret_cast<volatile int*>(flag) = 1;
    }
    return;
  }
  int seen = 0;
  while (seen == 0) {
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
  }
  out[blockIdx.x - 1] = *value;
}

__global__ void named_barriers(int* out, int is_complete) {
  __shared__ int values[2];
  const unsigned group = threadIdx.x / 64;
  if (threadIdx.x % 64 == 0) values[group] = static_cast<int>(group) + 7;
  if (is_complete != 0) asm volatile("bar.sync %0, 64;" ::"r"(group + 1) : "memory");
  out[threadIdx.x] = values[group];
}

// Producer warps arrive, consumer warps wait.
__global__ void arrive_and_wait(int* out) {
  __shared__ int values[32];
  if (threadIdx.x < 32) {
    values[threadIdx.x] = static_cast<int>(threadIdx.x) * 3;
    asm volatile("bar.arrive 3, 64;" ::: "memory");
  } else {
    asm volatile("bar.sync 3, 64;" ::: "memory");
    out[threadIdx.x - 32] = values[63 - threadIdx.x];
  }
}

__global__ void wrong_barriers() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    asm volatile("bar.sync 1, 64;");
  }
}
__global__ void divergent_barrier(int* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
    out[0] = 1;
  } else {
    __syncthreads();
    out[1] = 2;
  }
}
__global__ void divergent_collective(int* out) {
  unsigned votes = 0;
  if (threadIdx.x % 2 == 0) {
    votes = __ballot_sync(~0u, threadIdx.x > 3);
    out[0] = 5;
  } else {
    votes = __ballot_sync(~0u, threadIdx.x > 7);
    out[1] = 6;
  }
  out[2 + threadIdx.x] = static_cast<int>(votes);
}
__global__ void wait_for_ever(const volatile int* flag) {
  while (*flag == 0) {
  }
}
__global__ void count_for_ever(int* out) {
  int value = out[0];
  for (;;) {
    value = value * 5 + 1;
    asm volatile("" : "+r"(value));
  }
}
// Lanes of one warp hand a lock around: needs lanes that run on their own.
__global__ void lock_within_warp(int* lock, int* count) {
  for (bool is_done = false; !is_done;) {
    if (atomicCAS(lock, 0, 1) == 0) {
      __threadfence();
      *count += 1;
      __threadfence();
      atomicExch(lock, 0);
      is_done = true;
    }
  }
}

cudaError_t done() { return cudaGetLastError(); }

const Feature kList[] = {
    {"exchange_shared",
     [](const Arguments& a) {
       exchange_shared<<<1, kThreads, 0, a.stream>>>(a.at<int>(0), a.at<int>(1),
                                                     static_cast<Order>(a.number[0]));
       return done();
     }},
    {"exchange_warps",
     [](const Arguments& a) {
       exchange_warps<<<1, kThreads, 0, a.stream>>>(a.at<int>(0), a.at<int>(1),
                                                    static_cast<Order>(a.number[0]));
       return done();
     }},
    {"overwrite_shared",
     [](const Arguments& a) {
       overwrite_shared<<<1, kThreads, 0, a.stream>>>(a.at<int>(0),
                                                      static_cast<Order>(a.number[0]));
       return done();
     }},
    {"exchange_global",
     [](const Arguments& a) {
       exchange_global<<<1, kThreads, 0, a.stream>>>(a.at<int>(0), a.at<int>(1),
                                                     static_cast<Order>(a.number[0]));
       return done();
     }},
    {"same_place",
     [](const Arguments& a) {
       same_place<<<a.number[1], a.number[2], 0, a.stream>>>(a.at<int>(0), a.number[0]);
       return done();
     }},
    {"neighbouring_bytes",
     [](const Arguments& a) {
       neighbouring_bytes<<<1, kThreads, 0, a.stream>>>(a.at<unsigned char>(0));
       return done();
     }},
    {"last_block_sums",
     [](const Arguments& a) {
       last_block_sums<<<4, kThreads, 0, a.stream>>>(a.at<int>(0), a.at<int>(1), a.at<int>(2),
                                                     static_cast<Publication>(a.number[0]));
       return done();
     }},
    {"wait_for_flag",
     [](const Arguments& a) {
       wait_for_flag<<<2, 1, 0, a.stream>>>(a.at<int>(0), a.at<int>(1), a.at<int>(2), a.number[0]);
       return done();
     }},
    {"named_barriers",
     [](const Arguments& a) {
       named_barriers<<<1, 128, 0, a.stream>>>(a.at<int>(0), a.number[0]);
       return done();
     }},
    {"arrive_and_wait",
     [](const Arguments& a) {
       arrive_and_wait<<<1, 64, 0, a.stream>>>(a.at<int>(0));
       return done();
     }},
    {"wrong_barriers",
     [](const Arguments& a) {
       wrong_barriers<<<1, 64, 0, a.stream>>>();
       return done();
     }},
    {"divergent_barrier",
     [](const Arguments& a) {
       divergent_barrier<<<1, 64, 0, a.stream>>>(a.at<int>(0));
       return done();
     }},
    {"divergent_collective",
     [](const Arguments& a) {
       divergent_collective<<<1, 32, 0, a.stream>>>(a.at<int>(0));
       return done();
     }},
    {"wait_for_ever",
     [](const Arguments& a) {
       wait_for_ever<<<1, 32, 0, a.stream>>>(a.at<int>(0));
       return done();
     }},
    {"count_for_ever",
     [](const Arguments& a) {
       count_for_ever<<<1, 32, 0, a.stream>>>(a.at<int>(0));
       return done();
     }},
    {"lock_within_warp",
     [](const Arguments& a) {
       lock_within_warp<<<2, 32, 0, a.stream>>>(a.at<int>(0), a.at<int>(1));
       return done();
     }},
};
const Features kFeatures(kList);

}  // namespace
