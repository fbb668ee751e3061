// wgmma with float32 accumulators: m64nNk16 of float16 or bfloat16, both operands in shared memory;
// m64nNk8 of tf32 with A in registers. Every warp of the warpgroup computes its own 16 rows.
//
// From issue until wait_group the accumulators are undefined registers; shared memory, and
// registers of A, are read at any time in between, as the seed decides.
#include <bit>
#include <cmath>
#include <utility>

#include "runtime/access.h"
#include "runtime/decode.h"
#include "runtime/gather.h"
#include "runtime/half.h"
#include "runtime/ops.h"
#include "runtime/wgmma.h"

namespace emulator {
namespace {

constexpr int kRows = 16;
constexpr int kDepth = 16;
constexpr int kTf32Depth = 8;

WgmmaState& state(Warp* warp) {
  if (warp->wgmma == nullptr) warp->wgmma = std::make_unique<WgmmaState>();
  return *warp->wgmma;
}

enum Option { kIsBfloat = 1, kTransposesA = 2, kTransposesB = 4, kIsTf32 = 8 };

// Shared address of 16 bytes of an operand: eight elements along K (K-major) or along M or N (where
// the operand is transposed). PTX ISA, "Matrix descriptor" and "Canonical layouts": swizzling
// exclusive-ors address bits 4.. with bits 7...
uint32_t piece_address(const Execution& x, uint64_t descriptor, bool is_transposed, int row,
                       int depth) {
  auto field = [&](int shift) { return static_cast<uint32_t>(descriptor >> shift & 0x3FFF) << 4; };
  const uint32_t start = field(0);
  const uint32_t leading = field(16);
  const uint32_t stride = field(32);
  const auto swizzle = static_cast<uint32_t>(descriptor >> 62);
  if ((descriptor >> 49 & 7) != 0) {
    x.fail("unsupported PTX: base offset of a matrix descriptor", -1, FaultKind::kUnsupported);
  }
  const auto r = static_cast<uint32_t>(row);
  const auto k = static_cast<uint32_t>(depth);
  if (swizzle == 0) {
    return is_transposed ? start + r / 8 * stride + k / 8 * leading + k % 8 * 16
                         : start + r / 8 * stride + k / 8 * leading + r % 8 * 16;
  }
  const uint32_t width = swizzle == 1 ? 128 : swizzle == 2 ? 64 : 32;
  const uint32_t address = is_transposed ? start + 2 * r / width * leading + k / 8 * stride +
                                               k % 8 * width + 2 * r % width
                                         : start + r / 8 * stride + r % 8 * width + 2 * k;
  return address ^ ((address >> 3) & (width - 16) & 0x70);
}

struct Operand {
  uint64_t descriptor;
  bool is_bfloat;
  bool is_transposed;
};

// 16 bytes.
const char* piece(Execution& x, const Operand& operand, int row, int depth) {
  const uint32_t address = piece_address(x, operand.descriptor, operand.is_transposed, row, depth);
  const Block& block = *x.block;
  if (!is_in_shared(block, address, 16)) {
    x.fail("wgmma reads shared memory out of bounds", 0, FaultKind::kIllegalAddress);
  }
  if (x.machine.options.race) {
    check_async_proxy(block.shadow.get(), address, 16,
                      make_actor(block.clocks.get(), x.warp->index, 0), shared_place(block));
  }
  return reinterpret_cast<const char*>(block.arena + address);
}

// Eight elements, `step` apart in values.
void load_piece(Execution& x, const Operand& operand, int row, int depth, float* values, int step) {
  const auto* bits = reinterpret_cast<const uint16_t*>(piece(x, operand, row, depth));
  for (int e = 0; e < 8; ++e) {
    values[e * step] = operand.is_bfloat ? to_float(BFloat{bits[e]}) : to_float(Half{bits[e]});
  }
}

// Rows first_row and following as values[row * row_step + k * depth_step].
void load_operand(Execution& x, const Operand& operand, int first_row, int rows, float* values,
                  int row_step, int depth_step) {
  const int row_piece = operand.is_transposed ? 8 : 1;
  const int depth_piece = operand.is_transposed ? 1 : 8;
  for (int row = 0; row < rows; row += row_piece) {
    for (int k = 0; k < kDepth; k += depth_piece) {
      load_piece(x, operand, first_row + row, k, values + row * row_step + k * depth_step,
                 operand.is_transposed ? row_step : depth_step);
    }
  }
}

float from_tf32(uint32_t bits) { return std::bit_cast<float>(bits & 0xFFFFE000u); }

// Register e of lane t holds row t / 4 + 8 (e % 2), depth t % 4 + 4 (e / 2).
void load_registers(Execution& x, const Instruction& i, float* a) {
  for (int e = 0; e < 4; ++e) {
    const uint32_t* lanes = x.at<uint32_t>(i.sources[static_cast<size_t>(e)]);
    for (int t = 0; t < kLanes; ++t) {
      a[(t / 4 + e % 2 * 8) * kTf32Depth + t % 4 + e / 2 * 4] = from_tf32(lanes[t]);
    }
  }
}

// Rows of the depth, as values[k * rows + row].
void load_tf32_columns(Execution& x, uint64_t descriptor, int rows, float* values) {
  for (int row = 0; row < rows; ++row) {
    for (int k = 0; k < kTf32Depth; k += 4) {
      const char* bytes = piece(x, {descriptor, false, false}, row, 2 * k);  // in 16-bit elements
      const auto* bits = reinterpret_cast<const uint32_t*>(bytes);
      for (int e = 0; e < 4; ++e) values[(k + e) * rows + row] = from_tf32(bits[e]);
    }
  }
}

// Register e of lane t holds row t / 4 + 8 (e / 2 % 2), column 8 (e / 4) + 2 (t % 4) + e % 2.
void run_operation(Execution& x, WgmmaState* wgmma, WgmmaOperation* operation) {
  if (std::exchange(operation->is_done, true)) return;
  const Instruction& i = *operation->instruction;
  const bool is_bfloat = (i.option & kIsBfloat) != 0;
  const int columns = static_cast<int>(i.results.size()) * 2;
  float a[kRows * kDepth];
  std::vector<float> b(static_cast<size_t>(columns) * kDepth);
  const int depth = (i.option & kIsTf32) != 0 ? kTf32Depth : kDepth;
  if (depth == kTf32Depth) {
    load_registers(x, i, a);
    load_tf32_columns(x, operation->b, columns, b.data());
  } else {
    load_operand(x, {operation->a, is_bfloat, (i.option & kTransposesA) != 0},
                 x.warp->index % 4 * kRows, kRows, a, kDepth, 1);
    load_operand(x, {operation->b, is_bfloat, (i.option & kTransposesB) != 0}, 0, columns, b.data(),
                 1, columns);
  }
  std::vector<float*> lanes;
  for (const Slot& slot : i.results) lanes.push_back(wgmma->values.at(slot.offset).data());
  std::vector<float> sums(static_cast<size_t>(columns));
  for (int row = 0; row < kRows; ++row) {
    auto sum_of = [&](int n) -> float& {
      const int e = n / 8 * 4 + row / 8 * 2 + n % 2;
      return lanes[static_cast<size_t>(e)][row % 8 * 4 + n % 8 / 2];
    };
    for (int n = 0; n < columns; ++n) sums[n] = operation->adds ? sum_of(n) : 0;
    for (int k = 0; k < depth; ++k) {
      const float factor = a[row * depth + k];
      for (int n = 0; n < columns; ++n) sums[n] = std::fma(factor, b[k * columns + n], sums[n]);
    }
    for (int n = 0; n < columns; ++n) sum_of(n) = sums[n];
  }
  x.machine.counters.mma_macs += static_cast<uint64_t>(kRows * depth * columns);
}

void take_accumulators(Execution& x, const Instruction& i, WgmmaState* wgmma) {
  for (size_t e = 0; e < i.results.size(); ++e) {
    const Slot slot = i.results[e];
    if (wgmma->values.contains(slot.offset)) continue;
    if (!wgmma->is_fenced) x.fail("wgmma.mma_async without wgmma.fence before it");
    LaneMask& defined = x.frame->defined[static_cast<size_t>(i.targets[e])];
    const bool is_known = x.machine.options.registers && !x.machine.options.profile;
    if (is_known && defined != kAllLanes) {
      x.fail("wgmma reads an accumulator nobody wrote");
    }
    float* lanes = x.at<float>(slot);
    std::copy_n(lanes, kLanes, wgmma->values[slot.offset].begin());
    std::fill_n(lanes, kLanes, NAN);
    defined = 0;
  }
}

template <class T>
bool is_uniform(const T* lanes) {
  for (int t = 1; t < kLanes; ++t) {
    if (lanes[t] != lanes[0]) return false;
  }
  return true;
}

void run_multiply(Execution& x, const Instruction& i) {
  gather_warp(x, i, [&](LaneMask) {
    const uint64_t* b = x.at<uint64_t>(i.b);
    const uint64_t* a = (i.option & kIsTf32) != 0 ? b : x.at<uint64_t>(i.a);
    if (!is_uniform(a) || !is_uniform(b)) x.fail("matrix descriptors differ within a warp");
    WgmmaState& wgmma = state(x.warp);
    take_accumulators(x, i, &wgmma);
    WgmmaOperation operation{&i, a[0], b[0], (x.predicate(i.c) & 1) != 0, false};
    const bool is_blocked = !wgmma.open.empty() && !wgmma.open.back().is_done;
    const bool is_behind = is_blocked || (!wgmma.groups.empty() && !wgmma.groups.back().empty() &&
                                          !wgmma.groups.back().back().is_done);
    const AsyncMode mode = x.machine.options.async;
    const bool is_early =
        mode == AsyncMode::kEarly || (mode == AsyncMode::kRandom && x.machine.random.one_in(2));
    if (is_early && !is_behind) run_operation(x, &wgmma, &operation);
    wgmma.open.push_back(operation);
  });
}

void run_fence(Execution& x, const Instruction& i) {
  gather_warp(x, i, [&](LaneMask) { state(x.warp).is_fenced = true; });
}

void run_commit(Execution& x, const Instruction& i) {
  gather_warp(x, i, [&](LaneMask) {
    WgmmaState& wgmma = state(x.warp);
    wgmma.groups.push_back(std::exchange(wgmma.open, {}));
  });
}

void give_back_accumulators(Execution& x, WgmmaState* wgmma, const WgmmaOperation& operation) {
  const Instruction& i = *operation.instruction;
  for (size_t e = 0; e < i.results.size(); ++e) {
    const auto found = wgmma->values.find(i.results[e].offset);
    if (found == wgmma->values.end()) continue;
    std::copy_n(found->second.begin(), kLanes, x.at<float>(i.results[e]));
    x.frame->defined[static_cast<size_t>(i.targets[e])] = kAllLanes;
    wgmma->values.erase(found);
  }
}

bool shares_accumulators(const WgmmaOperation& a, const WgmmaOperation& b) {
  return a.instruction->results[0].offset == b.instruction->results[0].offset;
}

void run_wait(Execution& x, const Instruction& i) {
  gather_warp(x, i, [&](LaneMask) {
    WgmmaState& wgmma = state(x.warp);
    while (wgmma.groups.size() > static_cast<size_t>(i.option)) {
      std::vector<WgmmaOperation> group = std::move(wgmma.groups.front());
      wgmma.groups.pop_front();
      for (WgmmaOperation& operation : group) run_operation(x, &wgmma, &operation);
      for (const WgmmaOperation& operation : group) {
        bool is_in_use = false;
        auto look = [&](const std::vector<WgmmaOperation>& others) {
          for (const auto& other : others) is_in_use |= shares_accumulators(operation, other);
        };
        for (const auto& later : wgmma.groups) look(later);
        look(wgmma.open);
        if (is_in_use) continue;
        give_back_accumulators(x, &wgmma, operation);
        wgmma.is_fenced = false;  // what the thread does with them is to be ordered again
      }
    }
  });
}

// targets: register numbers of the accumulators.
void decode_multiply(Decoder& decoder, const ptx::Statement& s, Instruction* i) {
  const bool is_tf32 = s.opcode.ends_with("k8.f32.tf32.tf32");
  const bool is_half = s.opcode.ends_with("k16.f32.f16.f16");
  const bool is_bfloat = s.opcode.ends_with("k16.f32.bf16.bf16");
  const size_t operands = is_tf32 ? 6 : 8;
  if ((!is_half && !is_bfloat && !is_tf32) || s.operands.size() != operands) {
    throw Unsupported{"shape or types"};
  }
  const bool has_plain_operands =
      decoder.immediate(s.operands[4]) == 1 && decoder.immediate(s.operands[5]) == 1;
  const bool is_in_registers = s.operands[1].kind == ptx::Operand::Kind::kVector;
  if (!has_plain_operands || is_in_registers != is_tf32) {
    throw Unsupported{"negated operand, or A in another place"};
  }
  i->run = run_multiply;
  auto is_set = [&](size_t operand) {
    return !is_tf32 && decoder.immediate(s.operands[operand]) != 0;
  };
  i->option = (is_bfloat ? kIsBfloat : 0) | (is_tf32 ? kIsTf32 : 0) |
              (is_set(6) ? kTransposesA : 0) | (is_set(7) ? kTransposesB : 0);
  decoder.vector_results(s.operands[0], 32, s.operands[0].elements.size());
  i->writes.clear();  // they are in flight, not written
  for (const ptx::Operand& accumulator : s.operands[0].elements) {
    i->targets.push_back(accumulator.id);
  }
  if (is_tf32) {
    decoder.vector_sources(s.operands[1], 32, 4);
  } else {
    i->a = decoder.source(s.operands[1], 64);
  }
  i->b = decoder.source(s.operands[2], 64);
  i->c = decoder.source(s.operands[3], 1);
}

}  // namespace

bool decode_wgmma(Decoder& decoder, const ptx::Statement& s, Instruction* i) {
  if (s.parts[0] != "wgmma") return false;
  if (s.has("fence")) {
    i->run = run_fence;
  } else if (s.has("commit_group")) {
    i->run = run_commit;
  } else if (s.has("wait_group")) {
    i->run = run_wait;
    i->option = static_cast<int32_t>(decoder.immediate(s.operands.at(0)));
  } else {
    decode_multiply(decoder, s, i);
  }
  return true;
}

}  // namespace emulator
