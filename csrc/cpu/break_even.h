// The density above which the dense convolution is faster, by shape class: of the table that ships,
// or of one that was measured on this machine (perfconv bench --tune). Free of torch.
#pragma once

#include <string>
#include <vector>

#include "core/geometry.h"

namespace perfconv::cpu {

// 0 without a tuned kernel.
double break_even_density(const ConvGeometry& g, StorageType storage, Pass pass);

// The shape class that the density is of, and the table, for explain.
std::string break_even_reason(const ConvGeometry& g, StorageType storage);

// Whether this instruction set has a kernel worth choosing for the dtype.
bool is_tuned(StorageType storage);

// ---- a table of this machine
// ---------------------------------------------------------------------

// Names of the classes of a measured table, in its order.
std::vector<std::string> measured_classes();

// Takes densities in the order (class, {float32, bfloat16}, {forward, backward}); NaN leaves that
// entry to the shipped table, no densities all of them. source: where they are from, for explain.
// Throws std::invalid_argument unless each is NaN or in [0, 1] and their number is right.
// perfconv_cpu and perfconv._C have a copy each of this state.
void set_break_even(const std::vector<double>& densities, const std::string& source);

}  // namespace perfconv::cpu
