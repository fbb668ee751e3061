// Bounds, alignment, undefined memory, limits of a launch, calls, tables; and what mutations are
// tried on.
#undef NDEBUG  // asserts are tested, in every build
#include <cassert>
#include <cstdio>

#include "feature.h"

namespace {

__constant__ int constant_table[9] = {-1, -1, -1, 0, 0, 0, 1, 1, 1};
__constant__ float constant_scale[4];
__device__ int device_table[4] = {3, 1, 4, 1};

__global__ void copy(const int* in, int* out, int from, int to) {
  const int t = static_cast<int>(threadIdx.x);
  out[to + t] = in[from + t];
}
__global__ void copy_wide(const char* in, int4* out) {
  out[threadIdx.x] = *reinterpret_cast<const int4*>(in + 16 * threadIdx.x);
}

// Statics of 4 ints and a dynamic part; reads what thread 0 has written.
__global__ void shared_bounds(int* out, int fixed_place, int dynamic_place) {
  __shared__ int fixed[4];
  extern __shared__ int dynamic[];
  if (threadIdx.x == 0) {
    fixed[fixed_place] = 11;
    dynamic[dynamic_place] = 22;
  }
  __syncthreads();
  out[threadIdx.x] = fixed[fixed_place] + dynamic[dynamic_place];
}

__global__ void undefined_shared(int* out, int is_written) {
  __shared__ int values[32];
  if (is_written != 0 || threadIdx.x < 16) values[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = values[31 - threadIdx.x];
}
__global__ void undefined_global(int* scratch, int* out, int is_written) {
  if (is_written != 0) scratch[threadIdx.x] = 5;
  out[threadIdx.x] = scratch[threadIdx.x];
}
__global__ void undefined_register(int* out) {
  int value;
  asm volatile("{\n.reg .b32 never;\nadd.s32 %0, never, 1;\n}" : "=r"(value));
  out[threadIdx.x] = value;
}

__global__ void large_shared(int* out, int words) {
  extern __shared__ int dynamic[];
  for (int i = static_cast<int>(threadIdx.x); i < words; i += 128) dynamic[i] = i;
  __syncthreads();
  if (threadIdx.x == 0) out[0] = dynamic[words - 1];
}
__global__ void __launch_bounds__(64) bounded(int* out) { out[threadIdx.x] = 1; }

__device__ __noinline__ int fibonacci(int n) {
  return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
}
__global__ void calls(const int* in, int* out) { out[threadIdx.x] = fibonacci(in[threadIdx.x]); }

__global__ void tables(const int* in, int* out) {
  const int v = in[threadIdx.x];
  int result;
  switch (v & 7) {
    case 0:
      result = v * 3;
      break;
    case 1:
      result = v ^ 0x55;
      break;
    case 2:
      result = v * v;
      break;
    case 3:
      result = constant_table[v % 9];
      break;
    case 4:
      result = device_table[v >> 3 & 3];
      break;
    case 5:
      result = static_cast<int>(constant_scale[v >> 3 & 3] * 10);
      break;
    default:
      result = -v;
  }
  out[threadIdx.x] = result;
}

__global__ void local_arrays(const int* in, int* out, int place) {
  int values[8];
  for (int i = 0; i < 8; ++i) values[(i * 3 + place) % 8] = in[threadIdx.x] + i;
  out[threadIdx.x] = values[place % 8] + values[(place + 3) % 8];
}

__global__ void asserts(int n) { assert(static_cast<int>(threadIdx.x) < n && "thread index"); }
__global__ void prints() { printf("thread %d\n", threadIdx.x); }
__global__ void architecture(int* out) {
#ifdef __CUDA_ARCH__
  out[0] = __CUDA_ARCH__;
#endif
}

// One of each that mutations change: a barrier, a difference, a guard, an address.
__global__ void mutated(const int* in, int* out, int n) {
  __shared__ int values[64];
  const int t = static_cast<int>(threadIdx.x);
  values[t] = in[t];
  __syncthreads();
  if (t < n) out[t] = values[63 - t] - values[t];
}

cudaError_t done() { return cudaGetLastError(); }

const Feature kList[] = {
    {"copy",
     [](const Arguments& a) {
       copy<<<1, 32, 0, a.stream>>>(a.at<int>(0), a.at<int>(1), a.number[0], a.number[1]);
       return done();
     }},
    {"copy_wide",
     [](const Arguments& a) {
       copy_wide<<<1, 4, 0, a.stream>>>(a.at<char>(0) + a.number[0], a.at<int4>(1));
       return done();
     }},
    {"shared_bounds",
     [](const Arguments& a) {
       shared_bounds<<<1, 32, 40, a.stream>>>(a.at<int>(0), a.number[0], a.number[1]);
       return done();
     }},
    {"undefined_shared",
     [](const Arguments& a) {
       undefined_shared<<<1, 32, 0, a.stream>>>(a.at<int>(0), a.number[0]);
       return done();
     }},
    {"undefined_global",
     [](const Arguments& a) {
       undefined_global<<<1, 32, 0, a.stream>>>(a.at<int>(0), a.at<int>(1), a.number[0]);
       return done();
     }},
    {"undefined_register",
     [](const Arguments& a) {
       undefined_register<<<1, 32, 0, a.stream>>>(a.at<int>(0));
       return done();
     }},
    {"large_shared",
     [](const Arguments& a) {
       if (a.number[1] != 0) {
         const cudaError_t error = cudaFuncSetAttribute(
             large_shared, cudaFuncAttributeMaxDynamicSharedMemorySize, a.number[0]);
         if (error != cudaSuccess) return error;
       }
       large_shared<<<1, 128, a.number[0], a.stream>>>(a.at<int>(0), a.number[0] / 4);
       return done();
     }},
    {"bounded",
     [](const Arguments& a) {
       bounded<<<1, a.number[0], 0, a.stream>>>(a.at<int>(0));
       return done();
     }},
    {"calls",
     [](const Arguments& a) {
       calls<<<1, 32, 0, a.stream>>>(a.at<int>(0), a.at<int>(1));
       return done();
     }},
    {"tables",
     [](const Arguments& a) {
       const float scale[4] = {0.5f, 1.25f, 2.0f, 3.75f};
       const cudaError_t error = cudaMemcpyToSymbolAsync(constant_scale, scale, sizeof scale, 0,
                                                         cudaMemcpyHostToDevice, a.stream);
       if (error != cudaSuccess) return error;
       tables<<<1, 64, 0, a.stream>>>(a.at<int>(0), a.at<int>(1));
       return done();
     }},
    {"local_arrays",
     [](const Arguments& a) {
       local_arrays<<<1, 32, 0, a.stream>>>(a.at<int>(0), a.at<int>(1), a.number[0]);
       return done();
     }},
    {"asserts",
     [](const Arguments& a) {
       asserts<<<1, 32, 0, a.stream>>>(a.number[0]);
       return done();
     }},
    {"prints",
     [](const Arguments& a) {
       prints<<<1, 1, 0, a.stream>>>();
       return done();
     }},
    {"architecture",
     [](const Arguments& a) {
       architecture<<<1, 1, 0, a.stream>>>(a.at<int>(0));
       return done();
     }},
    {"mutated",
     [](const Arguments& a) {
       mutated<<<1, 64, 0, a.stream>>>(a.at<int>(0), a.at<int>(1), a.number[0]);
       return done();
     }},
    {"occupancy",
     [](const Arguments& a) {
       return cudaOccupancyMaxActiveBlocksPerMultiprocessor(a.at<int>(0), large_shared, 128,
                                                            static_cast<size_t>(a.number[0]));
     }},
    {"memset",
     [](const Arguments& a) { return cudaMemsetAsync(a.pointer[0], 0, a.number[0], a.stream); }},
    {"round_trip",
     [](const Arguments& a) {
       void* device = nullptr;
       const auto bytes = static_cast<size_t>(a.number[0]);
       cudaError_t error = cudaMalloc(&device, bytes);
       if (error != cudaSuccess) return error;
       error = cudaMemcpyAsync(device, a.pointer[0], bytes, cudaMemcpyHostToDevice, a.stream);
       if (error == cudaSuccess) error = cudaMemsetAsync(device, 0, 4, a.stream);
       if (error == cudaSuccess) {
         error = cudaMemcpyAsync(a.pointer[1], device, bytes, cudaMemcpyDeviceToHost, a.stream);
       }
       cudaFree(device);
       return error;
     }},
};
const Features kFeatures(kList);

}  // namespace
