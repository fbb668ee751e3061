// What the race checker remembers about memory.
#include "runtime/shadow.h"

#include <cstring>

namespace emulator {

void Shadow::forget_everything() {
  std::memset(static_cast<void*>(words_.get()), 0, (bytes_ / 4 + 1) * sizeof(Cell));
  split_.clear();
  more_.clear();
}

// The four bytes start with what is known about the word.
void Shadow::split(Cell* word) {
  std::array<Cell, 4> parts;
  for (Cell& part : parts) {
    part = *word;
    if (word->more == 0) continue;
    part.more = 0;
    const std::vector<Reader> readers = more_[word->more - 1];
    more_readers(&part) = readers;
  }
  split_.push_back(std::move(parts));
  word->is_split = true;
  word->more = static_cast<uint32_t>(split_.size()) - 1;
}

}  // namespace emulator
