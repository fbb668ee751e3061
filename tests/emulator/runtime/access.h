// Accesses of single lanes to memory: bounds, rights, alignment, races, and the order that strong
// operations make.
#pragma once

#include "runtime/machine.h"
#include "runtime/race.h"

namespace emulator {

// Global addresses are generic ones. kCluster: shared memory of any block of the cluster.
enum class Space { kGeneric, kShared, kLocal, kCluster };
enum class AccessKind { kRead, kWrite };

// The addresses of an instruction's lanes, from i.a and i.offset.
struct Addresses {
  uint64_t lane[kLanes];
  Addresses(const Execution& x, Slot base, bool is_narrow, int64_t offset);
  Addresses(const Execution& x, const Instruction& i)
      : Addresses(x, i.a, i.is_address_narrow, i.offset) {}
};

// Checks accesses of one instruction, lane after lane.
class Accessor {
 public:
  Accessor(Execution& x, AccessKind kind, Strength strength)
      : x_(x),
        kind_(kind),
        strength_(strength),
        is_checked_(x.machine.options.race),
        actor_(make_actor(x.block->clocks.get(), x.warp->index, 0)) {}

  // Where an access of a lane goes.
  template <Space kSpace>
  char* resolve(int lane, uint64_t address, size_t bytes) {
    if (address % bytes != 0) misaligned(lane, address, bytes);
    if constexpr (kSpace == Space::kShared) return shared(lane, address, bytes);
    if constexpr (kSpace == Space::kLocal) return local(lane, address, bytes);
    if constexpr (kSpace == Space::kCluster) return cluster(lane, address, bytes);
    return generic(lane, address, bytes);
  }
  char* shared(int lane, uint64_t address, size_t bytes) {
    return shared_of(*x_.block, lane, static_cast<uint32_t>(address), bytes);
  }
  char* cluster(int lane, uint64_t address, size_t bytes);
  char* generic(int lane, uint64_t address, size_t bytes);
  char* local(int lane, uint64_t address, size_t bytes);
  const Actor& actor(int lane) {
    actor_.lane = lane;
    return actor_;
  }

 private:
  char* shared_of(const Block& block, int lane, uint64_t address, size_t bytes);
  void visit(Block* block, int lane);
  char* find_local(int lane, uint64_t address, size_t bytes) const;
  [[noreturn]] void misaligned(int lane, uint64_t address, size_t bytes) const;
  [[noreturn]] void outside(const char* what, int lane, uint64_t address, size_t bytes) const;

  Execution& x_;
  AccessKind kind_;
  Strength strength_;
  bool is_checked_;
  Actor actor_;
};

// Whether all of an access lies in one object of the block's shared memory.
inline bool is_in_shared(const Block& block, uint64_t address, size_t bytes) {
  for (const SharedObject& object : block.shared) {
    const uint64_t offset = address - object.offset;
    if (offset < object.bytes && bytes <= object.bytes - offset) return true;
  }
  return false;
}

// Addresses in the shared memory of a block of the cluster, as mapa makes them: the rank, counted
// from one, above the address in its block. Without a rank they are the own block's.
constexpr int kRankShift = 24;
constexpr uint32_t kOwnAddress = (1u << kRankShift) - 1;

inline Place shared_place(const Block& block) {
  return {"shared memory", block.shadow == nullptr ? 0 : block.shadow->bytes()};
}

// How an operation orders the accesses around it.
struct Ordering {
  bool is_strong = false;
  bool is_acquire = false;
  bool is_release = false;
  bool is_block_only = false;

  Strength strength() const { return is_strong ? Strength::kStrong : Strength::kPlain; }
  int32_t encode() const {
    return is_strong | is_acquire << 1 | is_release << 2 | is_block_only << 3;
  }
  static Ordering decode(int32_t option) {
    return {(option & 1) != 0, (option & 2) != 0, (option & 4) != 0, (option & 8) != 0};
  }
  // By modifiers such as .acquire.gpu, .volatile; fallback: for instructions without any.
  static Ordering of(const ptx::Statement& statement, Ordering fallback);
};
constexpr int kOrderingBits = 4;

// Take and leave what a strong operation finds and puts at a location.
void order_read(Execution& x, int lane, const char* location, Space space, Ordering ordering);
void order_write(Execution& x, int lane, const char* location, Space space, Ordering ordering,
                 bool is_update);

}  // namespace emulator
