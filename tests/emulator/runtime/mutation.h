// Deliberate damage to kernels, to see whether tests notice. README.md lists the kinds.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "runtime/ptx.h"

namespace emulator {

// "drop:bar.sync:2@write_kernel": kind, argument and number of the place, and kernels whose name
// contains a text.
struct Mutation {
  enum class Kind { kNone, kDrop, kWait, kSwap, kUnpredicate, kShift, kSource, kAdd };
  Kind kind = Kind::kNone;
  std::string opcode;  // of kDrop, kSwap, kAdd
  int number = 0;      // of the place, among those that count() counts
  int amount = 0;      // of kWait, kShift, kSource, kAdd
  std::string kernel;

  // Throws std::invalid_argument for text that is no mutation.
  static Mutation parse(std::string_view text);
  // What emu_count is asked for: "bar.sync" (drop), "wait:", "swap:sub", "unpred:", "shift:",
  // "source:", "add:mbarrier.expect_tx".
  static Mutation pattern(std::string_view text);
};

// Statements of a kernel that a mutation could change.
std::vector<size_t> find_places(const Mutation& mutation, const ptx::Function& kernel);

// Changes the place with this number among those of the kernel.
void mutate(const Mutation& mutation, int number, std::vector<ptx::Statement>* statements);

}  // namespace emulator
