// Accesses of single lanes to memory.
#include "runtime/access.h"

namespace emulator {
namespace {

constexpr uint64_t kLowestPointer = 1 << 16;  // for unchecked memory

std::string size_text(size_t bytes) { return " of " + std::to_string(bytes) + " bytes "; }

}  // namespace

Addresses::Addresses(const Execution& x, Slot base, bool is_narrow, int64_t offset) {
  const auto added = static_cast<uint64_t>(offset);
  if (is_narrow) {
    const uint32_t* narrow = x.at<uint32_t>(base);
    for (int l = 0; l < kLanes; ++l) lane[l] = narrow[l] + added;
  } else {
    const uint64_t* wide = x.at<uint64_t>(base);
    for (int l = 0; l < kLanes; ++l) lane[l] = wide[l] + added;
  }
}

void Accessor::misaligned(int lane, uint64_t address, size_t bytes) const {
  x_.fail("misaligned access" + size_text(bytes) + "at address " + std::to_string(address), lane,
          FaultKind::kMisaligned);
}

void Accessor::outside(const char* what, int lane, uint64_t address, size_t bytes) const {
  const char* verb = kind_ == AccessKind::kRead ? " load" : " store";
  std::string text = std::string("illegal ") + what + verb + size_text(bytes);
  text += what == std::string("global")
              ? x_.machine.memory.describe(reinterpret_cast<const char*>(address))
              : "out of bounds: at " + std::to_string(address);
  x_.fail(text, lane, FaultKind::kIllegalAddress);
}

// The block may exit only after this access, and must have started before it.
void Accessor::visit(Block* block, int lane) {
  const std::string name = "shared memory of block " + std::to_string(block->number);
  if (block->alive == 0) x_.fail("access to the " + name + ", which has exited", lane);
  if (!is_checked_) return;
  const Actor& self = actor(lane);
  if (!self.clocks->has_met(self.warp, lane, block->number)) {
    x_.fail("access to the " + name + ", which may not have started: no cluster barrier before",
            lane);
  }
  block->visits[self.warp_id][static_cast<size_t>(lane)] = self.clock;
}

char* Accessor::cluster(int lane, uint64_t address, size_t bytes) {
  const auto narrow = static_cast<uint32_t>(address);
  const uint32_t rank = narrow >> kRankShift;
  if (rank == 0) return shared(lane, narrow, bytes);
  const auto& blocks = x_.block->cluster->blocks;
  if (rank > blocks.size()) outside("cluster's shared", lane, address, bytes);
  Block& block = *blocks[rank - 1];
  if (&block != x_.block) visit(&block, lane);
  return shared_of(block, lane, narrow & kOwnAddress, bytes);
}

char* Accessor::shared_of(const Block& block, int lane, uint64_t address, size_t bytes) {
  if (!is_in_shared(block, address, bytes)) outside("shared", lane, address, bytes);
  if (is_checked_) {
    const Place place = shared_place(block);
    kind_ == AccessKind::kRead
        ? check_read(block.shadow.get(), address, bytes, actor(lane), strength_, place)
        : check_write(block.shadow.get(), address, bytes, actor(lane), strength_, place);
  }
  return block.arena + address;
}

char* Accessor::find_local(int lane, uint64_t address, size_t bytes) const {
  char* pointer = reinterpret_cast<char*>(address);
  for (Frame* frame = x_.frame; frame != nullptr; frame = frame->caller) {
    const size_t size = frame->function.local_bytes;
    char* begin = frame->local.data() + size * static_cast<size_t>(lane);
    const auto offset = static_cast<size_t>(pointer - begin);
    if (offset < size && bytes <= size - offset) return pointer;
  }
  return nullptr;
}

char* Accessor::local(int lane, uint64_t address, size_t bytes) {
  char* pointer = find_local(lane, address, bytes);
  if (pointer == nullptr) outside("local", lane, address, bytes);
  return pointer;
}

char* Accessor::generic(int lane, uint64_t address, size_t bytes) {
  char* pointer = reinterpret_cast<char*>(address);
  if (Range* range = x_.machine.memory.find(pointer, bytes); range != nullptr) {
    if (kind_ == AccessKind::kWrite && range->rights == Rights::kReadOnly) {
      x_.fail("store to read-only " + std::string(range->name), lane, FaultKind::kIllegalAddress);
    }
    if (is_checked_ && range->shadow != nullptr) {
      const Place place{range->name, range->bytes};
      const auto offset = static_cast<size_t>(pointer - range->begin);
      kind_ == AccessKind::kRead
          ? check_read(range->shadow.get(), offset, bytes, actor(lane), strength_, place)
          : check_write(range->shadow.get(), offset, bytes, actor(lane), strength_, place);
    }
    return pointer;
  }
  const Block& block = *x_.block;
  const auto shared_offset = static_cast<uint64_t>(pointer - block.arena);
  const SharedObject& last = block.shared.back();
  if (shared_offset < last.offset + last.bytes) return shared(lane, shared_offset, bytes);
  if (char* found = find_local(lane, address, bytes); found != nullptr) return found;
  std::vector<char>& params = x_.machine.params;
  const auto param_offset = static_cast<size_t>(pointer - params.data());
  if (kind_ == AccessKind::kRead && param_offset + bytes <= params.size()) return pointer;
  if (!x_.machine.options.bounds && address > kLowestPointer) return pointer;
  outside("global", lane, address, bytes);
}

Ordering Ordering::of(const ptx::Statement& statement, Ordering fallback) {
  Ordering ordering = fallback;
  if (statement.has("volatile") || statement.has("relaxed")) ordering = {.is_strong = true};
  if (statement.has("acquire")) ordering = {.is_strong = true, .is_acquire = true};
  if (statement.has("release")) ordering = {.is_strong = true, .is_release = true};
  if (statement.has("acq_rel") || statement.has("sc")) {
    ordering = {.is_strong = true, .is_acquire = true, .is_release = true};
  }
  ordering.is_block_only = statement.has("cta");
  return ordering;
}

void order_read(Execution& x, int lane, const char* location, Space space, Ordering ordering) {
  if (!x.machine.options.race || !ordering.is_strong) return;
  auto& flags = space == Space::kShared ? x.block->flags : x.machine.flags;
  const auto found = flags.find(location);
  if (found == flags.end()) return;
  BlockClocks& clocks = *x.block->clocks;
  if (ordering.is_acquire) {
    clocks.acquire(x.warp->index, lane, *found->second);
  } else {
    clocks.thread(x.warp->index, lane).pending.merge(*found->second);
  }
}

// An update leaves what was published before: it continues a release sequence.
void order_write(Execution& x, int lane, const char* location, Space space, Ordering ordering,
                 bool is_update) {
  if (!x.machine.options.race || !ordering.is_strong) return;
  auto& flags = space == Space::kShared ? x.block->flags : x.machine.flags;
  BlockClocks& clocks = *x.block->clocks;
  PublishedPtr published;
  if (ordering.is_release) {
    published =
        std::make_shared<Published>(clocks.publish(x.warp->index, lane, ordering.is_block_only));
  } else {
    published = clocks.thread(x.warp->index, lane).fence;
  }
  if (!is_update) {
    if (published == nullptr) {
      flags.erase(location);
    } else {
      flags[location] = std::move(published);
    }
  } else if (published != nullptr) {
    PublishedPtr& known = flags[location];
    if (known == nullptr) {
      known = std::move(published);
    } else {
      auto both = std::make_shared<Published>(*known);
      both->merge(*published);
      known = std::move(both);
    }
  }
}

}  // namespace emulator
