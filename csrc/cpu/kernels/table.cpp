// The kernel table of the instruction set in use.
#include "cpu/kernels/isa.h"
#include "cpu/kernels/kernel_table.h"

namespace perfconv::cpu {
namespace {

KernelTable make_table() {
#ifdef PERFCONV_X86_KERNELS
  switch (isa()) {
    case Isa::kPortable:
      return make_portable_table();
    case Isa::kAvx2:
      return make_avx2_table();
    case Isa::kAvx512:
      return make_avx512_table();
    case Isa::kAvx512Bf16:
      return make_avx512bf16_table();
  }
#endif
  return make_portable_table();
}

}  // namespace

const KernelTable& kernels() {
  static const KernelTable table = make_table();
  return table;
}

}  // namespace perfconv::cpu
