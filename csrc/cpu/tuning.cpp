// set_break_even as an operator: it has no tensors, and acts on the tables of this library.
#include "core/registration.h"
#include "cpu/break_even.h"

namespace perfconv::cpu {
namespace {

void set_break_even_op(const std::vector<double>& densities, const std::string& source) {
  set_break_even(densities, source);
}

}  // namespace
}  // namespace perfconv::cpu

STABLE_TORCH_LIBRARY_IMPL(perfconv, CompositeExplicitAutograd, m) {
  m.impl("set_break_even", TORCH_BOX(&perfconv::cpu::set_break_even_op));
}
