// Detection of the instruction set.
#include "cpu/kernels/isa.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>

#ifdef PERFCONV_X86_KERNELS
#include <cpuid.h>
#endif

namespace perfconv::cpu {
namespace {

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return "portable";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
  }
  return "";
}

Isa best_isa() {
#ifdef PERFCONV_X86_KERNELS
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::kPortable;
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (!has_avx512) return Isa::kAvx2;
  return __builtin_cpu_supports("avx512bf16") ? Isa::kAvx512Bf16 : Isa::kAvx512;
#else
  return Isa::kPortable;
#endif
}

// Intel's processors issue the bfloat16 dot product at half the rate of a float multiply-add, so
// that it multiplies no faster and rounds more (KERNELS.md K-027); AMD's at the same rate.
Isa preferred_isa(Isa best) {
#ifdef PERFCONV_X86_KERNELS
  if (best == Isa::kAvx512Bf16 && __builtin_cpu_is("intel")) return Isa::kAvx512;
#endif
  return best;
}

Isa choose_isa() {
  const Isa best = best_isa();
  const char* wanted = std::getenv("PERFCONV_ISA");
  if (wanted == nullptr) return preferred_isa(best);
  for (const Isa candidate : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16}) {
    if (candidate <= best && std::strcmp(wanted, name_of(candidate)) == 0) return candidate;
  }
  return preferred_isa(best);
}

}  // namespace

Isa isa() {
  static const Isa chosen = choose_isa();
  return chosen;
}

const char* isa_name() { return name_of(isa()); }

bool has_amx_bf16() {
#ifdef PERFCONV_X86_KERNELS
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx & (1u << 22)) != 0;
#else
  return false;
#endif
}

}  // namespace perfconv::cpu
