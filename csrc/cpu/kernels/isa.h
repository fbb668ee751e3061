// The instruction set this process uses. Free of torch and of the kernels, so that perfconv._C can
// report it.
#pragma once

namespace perfconv::cpu {

enum class Isa { kPortable, kAvx2, kAvx512, kAvx512Bf16 };

// The fastest one this processor has, or the one named by the test switch PERFCONV_ISA (portable,
// avx2, avx512, avx512_bf16) if the processor has it; read once.
Isa isa();

const char* isa_name();

// Whether the processor multiplies bfloat16 matrices in hardware tiles (AMX), which oneDNN uses and
// the kernels here do not.
bool has_amx_bf16();

}  // namespace perfconv::cpu
