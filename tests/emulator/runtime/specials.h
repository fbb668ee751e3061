// Special registers: %tid and the like, prepared once for every warp.
#pragma once

#include <string_view>
#include <vector>

namespace emulator {

struct Block;
struct Machine;

// The number of a special register of 32 bits; -1 for other names.
int find_special(std::string_view name);

// The lanes of all of them, one after the other.
std::vector<char> special_registers(const Machine& machine, const Block& block, int warp);

}  // namespace emulator
