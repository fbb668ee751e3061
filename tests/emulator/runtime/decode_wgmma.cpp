// wgmma: m64nNk16 of float16 or bfloat16, both operands K-major in shared memory, float32
// accumulators. Every warp of the warpgroup computes its own 16 rows.
//
// From issue until wait_group the accumulators are undefined registers; shared memory is read at
// any time in between, as the seed decides.
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

WgmmaState& state(Warp* warp) {
  if (warp->wgmma == nullptr) warp->wgmma = std::make_unique<WgmmaState>();
  return *warp->wgmma;
}

// Shared address of an element of a K-major operand. PTX ISA, "Matrix descriptor" and "Canonical
// layouts": swizzling exclusive-ors address bits 4.. with bits 7...
uint32_t element_address(const Execution& x, uint64_t descriptor, int row, int byte) {
  auto field = [&](int shift) { return static_cast<uint32_t>(descriptor >> shift & 0x3FFF) << 4; };
  const uint32_t start = field(0);
  const uint32_t leading = field(16);
  const uint32_t stride = field(32);
  const auto swizzle = static_cast<uint32_t>(descriptor >> 62);
  if ((descriptor >> 49 & 7) != 0) {
    x.fail("unsupported PTX: base offset of a matrix descriptor", -1, FaultKind::kUnsupported);
  }
  const auto r = static_cast<uint32_t>(row);
  const auto k = static_cast<uint32_t>(byte);
  if (swizzle == 0) return start + r / 8 * stride + r % 8 * 16 + k / 16 * leading + k % 16;
  const uint32_t width = swizzle == 1 ? 128 : swizzle == 2 ? 64 : 32;
  const uint32_t address = start + r / 8 * stride + r % 8 * width + k;
  return address ^ ((address >> 3) & (width - 16) & 0x70);
}

float load(Execution& x, bool is_bfloat, uint64_t descriptor, int row, int k) {
  const uint32_t address = element_address(x, descriptor, row, 2 * k);
  const Block& block = *x.block;
  if (!is_in_shared(block, address, 2)) {
    x.fail("wgmma reads shared memory out of bounds", 0, FaultKind::kIllegalAddress);
  }
  if (x.machine.options.race) {
    check_async_proxy(block.shadow.get(), address, 2,
                      make_actor(block.clocks.get(), x.warp->index, 0), shared_place(block));
  }
  const uint16_t bits = *reinterpret_cast<const uint16_t*>(block.arena + address);
  return is_bfloat ? to_float(BFloat{bits}) : to_float(Half{bits});
}

// Register e of lane t holds row t / 4 + 8 (e / 2 % 2), column 8 (e / 4) + 2 (t % 4) + e % 2.
void run_operation(Execution& x, WgmmaState* wgmma, WgmmaOperation* operation) {
  if (std::exchange(operation->is_done, true)) return;
  const Instruction& i = *operation->instruction;
  const bool is_bfloat = i.option != 0;
  const int columns = static_cast<int>(i.results.size()) * 2;
  const int first_row = x.warp->index % 4 * kRows;
  float a[kRows][kDepth];
  std::vector<float> b(static_cast<size_t>(columns) * kDepth);
  for (int row = 0; row < kRows; ++row) {
    for (int k = 0; k < kDepth; ++k) {
      a[row][k] = load(x, is_bfloat, operation->a, first_row + row, k);
    }
  }
  for (int n = 0; n < columns; ++n) {
    for (int k = 0; k < kDepth; ++k) b[n * kDepth + k] = load(x, is_bfloat, operation->b, n, k);
  }
  for (size_t e = 0; e < i.results.size(); ++e) {
    auto& lanes = wgmma->values.at(i.results[e].offset);
    for (int t = 0; t < kLanes; ++t) {
      const auto part = static_cast<int>(e);
      const float* row = a[t / 4 + part / 2 % 2 * 8];
      const float* column = &b[(part / 4 * 8 + t % 4 * 2 + part % 2) * kDepth];
      float sum = operation->adds ? lanes[t] : 0;
      for (int k = 0; k < kDepth; ++k) sum = std::fma(row[k], column[k], sum);
      lanes[t] = sum;
    }
  }
  x.machine.counters.mma_macs += static_cast<uint64_t>(kRows * kDepth * columns);
}

void take_accumulators(Execution& x, const Instruction& i, WgmmaState* wgmma) {
  for (size_t e = 0; e < i.results.size(); ++e) {
    const Slot slot = i.results[e];
    if (wgmma->values.contains(slot.offset)) continue;
    if (!wgmma->is_fenced) x.fail("wgmma.mma_async without wgmma.fence before it");
    LaneMask& defined = x.frame->defined[static_cast<size_t>(i.targets[e])];
    if (x.machine.options.registers && defined != kAllLanes) {
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
    const uint64_t* a = x.at<uint64_t>(i.a);
    const uint64_t* b = x.at<uint64_t>(i.b);
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
        if (!is_in_use) give_back_accumulators(x, &wgmma, operation);
      }
    }
  });
}

// targets: register numbers of the accumulators.
void decode_multiply(Decoder& decoder, const ptx::Statement& s, Instruction* i) {
  const bool is_half = s.opcode.ends_with("k16.f32.f16.f16");
  const bool is_bfloat = s.opcode.ends_with("k16.f32.bf16.bf16");
  if ((!is_half && !is_bfloat) || s.operands.size() != 8) throw Unsupported{"shape or types"};
  const bool has_plain_operands =
      decoder.immediate(s.operands[4]) == 1 && decoder.immediate(s.operands[5]) == 1 &&
      decoder.immediate(s.operands[6]) == 0 && decoder.immediate(s.operands[7]) == 0;
  if (!has_plain_operands || s.operands[1].kind == ptx::Operand::Kind::kVector) {
    throw Unsupported{"negated, transposed or register operand"};
  }
  i->run = run_multiply;
  i->option = is_bfloat ? 1 : 0;
  decoder.vector_results(s.operands[0], 32, s.operands[0].elements.size());
  i->writes.clear();  // they are in flight, not written
  for (const ptx::Operand& accumulator : s.operands[0].elements) {
    i->targets.push_back(accumulator.id);
  }
  i->a = decoder.source(s.operands[1], 64);
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
