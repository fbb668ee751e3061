// Arithmetic: one thread an element, one row of the result an operation.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "feature.h"

namespace {

__device__ int place() { return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); }

__global__ void integers(const int* as, const int* bs, const int* cs, int* out, int n) {
  const int i = place();
  if (i >= n) return;
  const int a = as[i];
  const int b = bs[i];
  const int c = cs[i];
  const auto ua = static_cast<unsigned>(a);
  const auto ub = static_cast<unsigned>(b);
  const auto uc = static_cast<unsigned>(c);
  int row = 0;
  auto put = [&](long long value) { out[row++ * n + i] = static_cast<int>(value); };
  put(a + b);
  put(a - b);
  put(a * b);
  put(__mulhi(a, b));
  put(__umulhi(ua, ub));
  put(a * b + c);
  put(a / b);
  put(a % b);
  put(ua / ub);
  put(ua % ub);
  put(min(a, b));
  put(max(ua, ub));
  put(abs(a));
  put(__sad(a, b, uc));
  put((a & b) ^ c);
  put(~a | b);
  put(c < 32 ? ua << c : 0);
  put(a >> (c & 31));
  put(ua >> (c & 31));
  put(__funnelshift_l(ua, ub, uc));
  put(__funnelshift_r(ua, ub, uc));
  put(__byte_perm(ua, ub, uc & 0x7777));
  put(__popc(ua));
  put(__clz(a));
  put(__brev(ua));
  put(__ffs(a));
  put(__dp4a(a, b, c));
  put(a > b ? a : c);
  int field;
  asm("bfe.s32 %0, %1, 5, 9;" : "=r"(field) : "r"(a));
  put(field);
  asm("bfi.b32 %0, %1, %2, 7, 11;" : "=r"(field) : "r"(a), "r"(b));
  put(field);
  asm("shl.b32 %0, %1, 35;" : "=r"(field) : "r"(a));
  put(field);
  asm("shr.s32 %0, %1, 40;" : "=r"(field) : "r"(a));
  put(field);
}

__global__ void long_integers(const long long* as, const long long* bs, long long* out, int n) {
  const int i = place();
  if (i >= n) return;
  const long long a = as[i];
  const long long b = bs[i];
  const auto ua = static_cast<unsigned long long>(a);
  const auto ub = static_cast<unsigned long long>(b);
  int row = 0;
  auto put = [&](unsigned long long value) { out[row++ * n + i] = static_cast<long long>(value); };
  put(ua + ub);
  put(ua - ub);
  put(ua * ub);
  put(__mul64hi(a, b));
  put(__umul64hi(ua, ub));
  put(a / b);
  put(a % b);
  put(ua / ub);
  put(min(a, b));
  put(ua << (ub & 63));
  put(a >> (ub & 63));
  put(ua >> (ub & 63));
  put(__popcll(ua));
  put(__clzll(a));
  put(__brevll(ua));
  put(static_cast<long long>(static_cast<int>(a)) * static_cast<int>(b) + b);
}

__global__ void floats(const float* as, const float* bs, const float* cs, float* out, int n) {
  const int i = place();
  if (i >= n) return;
  const float a = as[i];
  const float b = bs[i];
  const float c = cs[i];
  int row = 0;
  auto put = [&](float value) { out[row++ * n + i] = value; };
  put(__fadd_rn(a, b));
  put(__fsub_rn(a, b));
  put(__fmul_rn(a, b));
  put(__fmaf_rn(a, b, c));
  put(a / b);
  put(fminf(a, b));
  put(fmaxf(a, b));
  put(fabsf(a));
  put(-a);
  put(sqrtf(fabsf(a)));
  put(floorf(a));
  put(ceilf(a));
  put(truncf(a));
  put(rintf(a));
  put(a < b);
  put(a >= b);
  put(a != a);
  put(isfinite(a));
  put(copysignf(a, b));
  put(__saturatef(a));
  put(rsqrtf(fabsf(a) + 1));
  put(expf(a));
  put(logf(fabsf(a) + 1));
  put(sinf(a));
  put(tanhf(a));
  put(__fdividef(a, 3.0f));
}

template <class T>
__global__ void halves(const T* as, const T* bs, const T* cs, T* out, int n) {
  const int i = place();
  if (i >= n) return;
  int row = 0;
  auto put = [&](T value) { out[row++ * n + i] = value; };
  const T a = as[i];
  const T b = bs[i];
  const T c = cs[i];
  put(__hadd_rn(a, b));
  put(__hsub_rn(a, b));
  put(__hmul_rn(a, b));
  put(__hfma(a, b, c));
  put(__hfma_relu(a, b, c));
  put(__hmin(a, b));
  put(__hmax_nan(a, b));
  put(__hneg(a));
  put(__habs(a));
  put(a < b ? a : c);
}

__global__ void packed_halves(const __half2* as, const __half2* bs, __half2* out, int n) {
  const int i = place();
  if (i >= n) return;
  out[i] = __hfma2(as[i], bs[i], bs[i]);
  out[n + i] = __hmax2(as[i], bs[i]);
}

// Every conversion leaves 64 bits.
__global__ void conversions(const double* as, long long* out, int n) {
  const int i = place();
  if (i >= n) return;
  const double d = as[i];
  const auto f = static_cast<float>(d);
  int row = 0;
  auto put = [&](long long value) { out[row++ * n + i] = value; };
  put(__float_as_int(f));
  put(__float2int_rz(f));
  put(__float2int_rn(f));
  put(__float2int_rd(f));
  put(__float2uint_ru(f));
  put(__double2ll_rz(d));
  put(__float2ll_rn(f));
  put(__half_as_ushort(__float2half_rn(f)));
  put(__bfloat16_as_ushort(__float2bfloat16_rn(f)));
  put(__half_as_ushort(__float2half_rz(f)));
  const auto whole = static_cast<int>(__double2ll_rz(d));
  put(static_cast<signed char>(whole));
  put(static_cast<unsigned short>(whole));
  put(__float_as_int(static_cast<float>(whole)));
  put(__float_as_int(static_cast<float>(static_cast<unsigned>(whole))));
  put(__double_as_longlong(static_cast<double>(whole)));
  const __half2 pair = __floats2half2_rn(f, -f);
  put(reinterpret_cast<const unsigned&>(pair));
  unsigned tf32;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(tf32) : "f"(f));
  put(tf32);
}

unsigned blocks(const Arguments& a) { return static_cast<unsigned>(a.number[0] + 63) / 64; }

const Feature kList[] = {
    {"integers",
     [](const Arguments& a) {
       integers<<<blocks(a), 64, 0, a.stream>>>(a.at<int>(0), a.at<int>(1), a.at<int>(2),
                                                a.at<int>(3), a.number[0]);
       return cudaGetLastError();
     }},
    {"long_integers",
     [](const Arguments& a) {
       long_integers<<<blocks(a), 64, 0, a.stream>>>(a.at<long long>(0), a.at<long long>(1),
                                                     a.at<long long>(2), a.number[0]);
       return cudaGetLastError();
     }},
    {"floats",
     [](const Arguments& a) {
       floats<<<blocks(a), 64, 0, a.stream>>>(a.at<float>(0), a.at<float>(1), a.at<float>(2),
                                              a.at<float>(3), a.number[0]);
       return cudaGetLastError();
     }},
    {"halves",
     [](const Arguments& a) {
       halves<<<blocks(a), 64, 0, a.stream>>>(a.at<__half>(0), a.at<__half>(1), a.at<__half>(2),
                                              a.at<__half>(3), a.number[0]);
       return cudaGetLastError();
     }},
    {"bfloats",
     [](const Arguments& a) {
       halves<<<blocks(a), 64, 0, a.stream>>>(a.at<__nv_bfloat16>(0), a.at<__nv_bfloat16>(1),
                                              a.at<__nv_bfloat16>(2), a.at<__nv_bfloat16>(3),
                                              a.number[0]);
       return cudaGetLastError();
     }},
    {"packed_halves",
     [](const Arguments& a) {
       packed_halves<<<blocks(a), 64, 0, a.stream>>>(a.at<__half2>(0), a.at<__half2>(1),
                                                     a.at<__half2>(2), a.number[0]);
       return cudaGetLastError();
     }},
    {"conversions",
     [](const Arguments& a) {
       conversions<<<blocks(a), 64, 0, a.stream>>>(a.at<double>(0), a.at<long long>(1),
                                                   a.number[0]);
       return cudaGetLastError();
     }},
};
const Features kFeatures(kList);

}  // namespace
