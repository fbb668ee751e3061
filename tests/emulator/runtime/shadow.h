// What the race checker remembers about memory: one cell for every 4 bytes, or for every byte of a
// word that was ever accessed in parts.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <memory>
#include <vector>

#include "runtime/lanes.h"

namespace emulator {

// Lanes of one warp that read at one time of its clock. Warps are numbered within the launch.
struct Reader {
  uint32_t clock;
  uint32_t warp;
  LaneMask lanes;
};

enum class CellState : uint8_t {
  kUntouched,     // as it was when the memory became known
  kWritten,       // by plain stores
  kAtomic,        // by atomics and other strong stores
  kBulk,          // by a completed bulk copy
  kInFlight,      // destination of a cp.async that nobody waited for
  kBulkInFlight,  // destination of an unfinished bulk copy
};

struct Cell {
  uint32_t write_clock;
  uint32_t write_warp;
  Reader reader;  // the first of its readers since the last write; none when lanes is 0
  uint32_t more;  // 1 + index of further readers, or of the byte cells when is_split
  uint8_t write_lane;
  CellState state;
  bool is_split;
  bool has_plain_reader;
};

class Shadow {
 public:
  // is_undefined: reading what was not written before is an error.
  Shadow(size_t bytes, bool is_undefined)
      : is_undefined_(is_undefined),
        bytes_(bytes),
        words_(static_cast<Cell*>(std::calloc(bytes / 4 + 1, sizeof(Cell))), &std::free) {}

  bool is_undefined() const { return is_undefined_; }
  size_t bytes() const { return bytes_; }
  // Valid when bytes are undefined and cells zero: for the next block's shared memory.
  void forget_everything();

  // Calls f(cell, byte offset, size) for the cells of an access.
  template <class F>
  void visit(size_t offset, size_t bytes, F f) {
    if (((offset | bytes) & 3) == 0) {
      for (size_t word = offset / 4; word < (offset + bytes) / 4; ++word) {
        Cell& cell = words_.get()[word];
        if (!cell.is_split) [[likely]] {
          f(cell, word * 4, 4);
        } else {
          for (size_t i = 0; i < 4; ++i) f(split_[cell.more][i], word * 4 + i, 1);
        }
      }
    } else {
      for (size_t i = offset; i < offset + bytes; ++i) {
        Cell& word = words_.get()[i / 4];
        if (!word.is_split) split(&word);
        f(split_[word.more][i % 4], i, 1);
      }
    }
  }

  // The readers of a cell beyond the first.
  std::vector<Reader>& more_readers(Cell* cell) {
    if (cell->more == 0) {
      more_.emplace_back();
      cell->more = static_cast<uint32_t>(more_.size());
    }
    return more_[cell->more - 1];
  }

 private:
  void split(Cell* word);

  bool is_undefined_;
  size_t bytes_;
  std::unique_ptr<Cell[], void (*)(void*)> words_;
  std::deque<std::array<Cell, 4>> split_;
  std::deque<std::vector<Reader>> more_;
};

}  // namespace emulator
