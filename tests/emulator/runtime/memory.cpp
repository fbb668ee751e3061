// Global memory: the ranges that kernels may touch.
#include "runtime/memory.h"

#include <algorithm>
#include <cstdint>

namespace emulator {

void GlobalMemory::add(void* begin, size_t bytes, Rights rights, bool is_undefined,
                       const char* name) {
  remove(begin);
  auto range =
      std::make_unique<Range>(Range{static_cast<char*>(begin), bytes, rights, name, nullptr});
  if (rights == Rights::kReadWrite) range->shadow = std::make_unique<Shadow>(bytes, is_undefined);
  ranges_.push_back(std::move(range));
}

void GlobalMemory::remove(const void* begin) {
  last_ = nullptr;
  std::erase_if(ranges_, [&](const auto& range) { return range->begin == begin; });
}

Range* GlobalMemory::search(const void* pointer, size_t size) {
  for (const auto& range : ranges_) {
    if (range->contains(pointer, size)) return last_ = range.get();
  }
  return nullptr;
}

std::string GlobalMemory::describe(const void* pointer) const {
  constexpr int64_t kNear = 4096;
  const Range* nearest = nullptr;
  int64_t nearest_offset = 0;
  for (const auto& range : ranges_) {
    const int64_t offset = static_cast<const char*>(pointer) - range->begin;
    if (offset < -kNear || offset > static_cast<int64_t>(range->bytes) + kNear) continue;
    if (nearest == nullptr || std::abs(offset) < std::abs(nearest_offset)) {
      nearest = range.get();
      nearest_offset = offset;
    }
  }
  if (nearest == nullptr) return "in no registered range";
  return "at offset " + std::to_string(nearest_offset) + " of a registered range of " +
         std::to_string(nearest->bytes) + " bytes";
}

}  // namespace emulator
