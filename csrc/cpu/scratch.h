// Working memory of one call. A thread keeps the buffer of its last call: touching fresh pages
// costs more than packing a weight does (KERNELS.md K-003).
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <utility>

namespace perfconv::cpu {

class Scratch {
 public:
  explicit Scratch(int64_t bytes) : buffer_(std::exchange(kept(), Buffer{})) {
    if (buffer_.bytes >= bytes) return;
    const int64_t page = bytes < kHugePage / 8 ? 4096 : kHugePage;
    const int64_t rounded = (bytes + page - 1) / page * page;
    buffer_ = Buffer{};  // first give the small one back
    buffer_.memory.reset(
        std::aligned_alloc(static_cast<size_t>(page), static_cast<size_t>(rounded)));
    if (buffer_.memory == nullptr) throw std::bad_alloc();
    if (page == kHugePage) {
      madvise(buffer_.memory.get(), static_cast<size_t>(rounded), MADV_HUGEPAGE);  // a wish only
    }
    buffer_.bytes = rounded;
  }
  ~Scratch() {
    if (buffer_.bytes <= kKeptBytes && buffer_.bytes > kept().bytes) kept() = std::move(buffer_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <class T>
  T* data() {
    return static_cast<T*>(buffer_.memory.get());
  }

 private:
  static constexpr int64_t kKeptBytes = int64_t{64} << 20;
  static constexpr int64_t kHugePage = int64_t{2} << 20;

  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  struct Buffer {
    std::unique_ptr<void, Free> memory;
    int64_t bytes = 0;
  };

  static Buffer& kept() {
    static thread_local Buffer buffer;
    return buffer;
  }

  Buffer buffer_;
};

}  // namespace perfconv::cpu
