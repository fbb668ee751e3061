// Global memory: the ranges that kernels may touch, and what the race checker knows of each.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "runtime/shadow.h"

namespace emulator {

enum class Rights { kReadWrite, kReadOnly };

struct Range {
  char* begin;
  size_t bytes;
  Rights rights;
  const char* name;                // in reports
  std::unique_ptr<Shadow> shadow;  // none where nothing can race: read-only memory

  bool contains(const void* pointer, size_t size) const {
    const auto offset = static_cast<size_t>(static_cast<const char*>(pointer) - begin);
    return offset <= bytes && size <= bytes - offset;
  }
};

class GlobalMemory {
 public:
  // A range at the same place is replaced. is_undefined: reads before the first write are errors.
  void add(void* begin, size_t bytes, Rights rights, bool is_undefined,
           const char* name = "global memory");
  void remove(const void* begin);

  // The range that holds all of an access; null if none does.
  Range* find(const void* pointer, size_t size) {
    if (last_ != nullptr && last_->contains(pointer, size)) return last_;
    return search(pointer, size);
  }
  // "at offset 64 of a range of 64 bytes": for accesses outside.
  std::string describe(const void* pointer) const;

 private:
  Range* search(const void* pointer, size_t size);

  std::vector<std::unique_ptr<Range>> ranges_;
  Range* last_ = nullptr;
};

}  // namespace emulator
