// Finds the PTX in what nvcc registers with the runtime.
#pragma once

#include <map>
#include <string>

namespace emulator {

struct FatBinary {
  std::map<int, std::string> ptx;  // by compute capability
  std::string contents;            // what else is there, and why PTX could not be read
};

FatBinary read_fat_binary(const char* data);

}  // namespace emulator
