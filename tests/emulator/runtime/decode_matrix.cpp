// Matrix fragments of a warp: ldmatrix, stmatrix and mma.sync with float32 accumulators.
//
// Lane t holds, of an 8 x 8 matrix of 16-bit elements, elements 2 (t % 4) and + 1 of row t / 4: the
// lanes of such a register are the matrix, row after row. PTX ISA, "Matrix fragments for mma".
#include <cstring>

#include "runtime/access.h"
#include "runtime/decode.h"
#include "runtime/gather.h"
#include "runtime/half.h"
#include "runtime/ops.h"

namespace emulator {
namespace {

constexpr size_t kRowBytes = 16;

uint16_t element(const uint32_t* lanes, int row, int column) {
  return static_cast<uint16_t>(lanes[row * 4 + column / 2] >> (16 * (column % 2)));
}

// ---- ldmatrix, stmatrix ------------------------------------------------------------------------

void transpose(uint32_t* lanes) {
  uint32_t copy[kLanes];
  std::memcpy(copy, lanes, sizeof copy);
  for (int row = 0; row < 8; ++row) {
    for (int pair = 0; pair < 4; ++pair) {
      lanes[row * 4 + pair] =
          element(copy, 2 * pair, row) | uint32_t{element(copy, 2 * pair + 1, row)} << 16;
    }
  }
}

// Rows of one matrix that lie in the same banks need one more phase each.
void count_bank_conflicts(Execution& x, const uint64_t* rows) {
  uint32_t banks = 0;
  for (int row = 0; row < 8; ++row) {
    const uint32_t bank = 1u << (rows[row] / kRowBytes % 8);
    if ((banks & bank) != 0) ++x.machine.counters.bank_conflict_phases;
    banks |= bank;
  }
  ++x.machine.counters.matrix_loads;
}

// Lane 8 m + r gives the address of row r of matrix m. option: transposed.
void run_ldmatrix(Execution& x, const Instruction& i) {
  gather_warp(x, i, [&](LaneMask) {
    const Addresses addresses(x, i);
    Accessor accessor(x, AccessKind::kRead, Strength::kPlain);
    for (size_t m = 0; m < i.results.size(); ++m) {
      uint32_t rows[kLanes];
      for (int row = 0; row < 8; ++row) {
        const int lane = static_cast<int>(m) * 8 + row;
        std::memcpy(rows + row * 4,
                    accessor.resolve<Space::kShared>(
                        lane, static_cast<uint32_t>(addresses.lane[lane]), kRowBytes),
                    kRowBytes);
      }
      count_bank_conflicts(x, addresses.lane + 8 * m);
      if (i.option != 0) transpose(rows);
      std::memcpy(x.at<uint32_t>(i.results[m]), rows, sizeof rows);
    }
  });
}

void run_stmatrix(Execution& x, const Instruction& i) {
  gather_warp(x, i, [&](LaneMask) {
    const Addresses addresses(x, i);
    Accessor accessor(x, AccessKind::kWrite, Strength::kPlain);
    for (size_t m = 0; m < i.sources.size(); ++m) {
      uint32_t rows[kLanes];
      std::memcpy(rows, x.at<uint32_t>(i.sources[m]), sizeof rows);
      if (i.option != 0) transpose(rows);
      for (int row = 0; row < 8; ++row) {
        const int lane = static_cast<int>(m) * 8 + row;
        std::memcpy(accessor.resolve<Space::kShared>(
                        lane, static_cast<uint32_t>(addresses.lane[lane]), kRowBytes),
                    rows + row * 4, kRowBytes);
      }
    }
  });
}

// ---- mma ---------------------------------------------------------------------------------------

// One 8 x 8 (16-bit) or 8 x 4 (tf32) block of A or B as floats, row after row. B's fragments hold
// its columns as rows.
template <class T>
void widen(const uint32_t* lanes, float* block, int stride) {
  if constexpr (std::is_same_v<T, uint32_t>) {
    for (int t = 0; t < kLanes; ++t) block[t / 4 * stride + t % 4] = tf32_to_float(lanes[t]);
  } else {
    for (int t = 0; t < kLanes; ++t) {
      float* pair = block + t / 4 * stride + t % 4 * 2;
      pair[0] = to_float(T{static_cast<uint16_t>(lanes[t])});
      pair[1] = to_float(T{static_cast<uint16_t>(lanes[t] >> 16)});
    }
  }
}

// sources: A (2 or 4 registers), B (half as many), C (4). Sums in the order of k; hardware's order
// is not documented.
template <class T, int kK>
void run_mma(Execution& x, const Instruction& i) {
  gather_warp(x, i, [&](LaneMask lanes) {
    if (lanes != kAllLanes) x.fail("mma by an incomplete warp");
    constexpr int kBlock = std::is_same_v<T, uint32_t> ? 4 : 8;  // elements of k in a register
    constexpr size_t kBlocks = kK / kBlock;
    alignas(32) float a[16][kK];
    alignas(32) float b_columns[8][kK];
    alignas(32) float b[kK][8];
    alignas(32) float c[16][8];
    for (size_t k = 0; k < kBlocks; ++k) {
      const size_t column = k * kBlock;
      widen<T>(x.at<uint32_t>(i.sources[2 * k]), &a[0][column], kK);
      widen<T>(x.at<uint32_t>(i.sources[2 * k + 1]), &a[8][column], kK);
      widen<T>(x.at<uint32_t>(i.sources[2 * kBlocks + k]), &b_columns[0][column], kK);
    }
    for (int n = 0; n < 8; ++n) {
      for (int k = 0; k < kK; ++k) b[k][n] = b_columns[n][k];
    }
    const Slot* accumulators = &i.sources[3 * kBlocks];
    for (int e = 0; e < 4; ++e) {
      const float* from = x.at<float>(accumulators[e]);
      for (int t = 0; t < kLanes; ++t) c[t / 4 + e / 2 * 8][t % 4 * 2 + e % 2] = from[t];
    }
    for (auto row = 0; row < 16; ++row) {
      __m256 sum = _mm256_load_ps(c[row]);
      for (int k = 0; k < kK; ++k) {
        sum = _mm256_fmadd_ps(_mm256_set1_ps(a[row][k]), _mm256_load_ps(b[k]), sum);
      }
      _mm256_store_ps(c[row], sum);
    }
    for (int e = 0; e < 4; ++e) {
      float* to = x.at<float>(i.results[static_cast<size_t>(e)]);
      for (int t = 0; t < kLanes; ++t) to[t] = c[t / 4 + e / 2 * 8][t % 4 * 2 + e % 2];
    }
    x.machine.counters.mma_macs += 16 * 8 * kK;
  });
}

struct Shape {
  const char* suffix;  // of mma.sync.aligned.
  size_t a_registers;
  Handler run;
};
constexpr Shape kShapes[] = {
    {"m16n8k16.row.col.f32.f16.f16.f32", 4, run_mma<Half, 16>},
    {"m16n8k16.row.col.f32.bf16.bf16.f32", 4, run_mma<BFloat, 16>},
    {"m16n8k8.row.col.f32.f16.f16.f32", 2, run_mma<Half, 8>},
    {"m16n8k8.row.col.f32.bf16.bf16.f32", 2, run_mma<BFloat, 8>},
    {"m16n8k8.row.col.f32.tf32.tf32.f32", 4, run_mma<uint32_t, 8>},
    {"m16n8k4.row.col.f32.tf32.tf32.f32", 2, run_mma<uint32_t, 4>},
};

void decode_mma(Decoder& decoder, const ptx::Statement& s, Instruction* i) {
  for (const Shape& shape : kShapes) {
    if (s.opcode != std::string("mma.sync.aligned.") + shape.suffix) continue;
    i->run = shape.run;
    decoder.vector_results(s.operands.at(0), 32, 4);
    decoder.vector_sources(s.operands.at(1), 32, shape.a_registers);
    decoder.vector_sources(s.operands.at(2), 32, shape.a_registers / 2);
    decoder.vector_sources(s.operands.at(3), 32, 4);
    return;
  }
  throw Unsupported{"shape"};
}

void decode_move(Decoder& decoder, const ptx::Statement& s, Instruction* i, bool is_load) {
  const size_t count = s.has("x4") ? 4 : s.has("x2") ? 2 : 1;
  if (!s.has("m8n8") || first_type(s).bits != 16) throw Unsupported{"shape"};
  i->run = is_load ? run_ldmatrix : run_stmatrix;
  i->option = s.has("trans") ? 1 : 0;
  decoder.address(s.operands.at(is_load ? 1 : 0));
  if (is_load) {
    decoder.vector_results(s.operands[0], 32, count);
  } else {
    decoder.vector_sources(s.operands[1], 32, count);
  }
}

}  // namespace

bool decode_matrix(Decoder& decoder, const ptx::Statement& s, Instruction* i) {
  const std::string& opcode = s.parts[0];
  if (opcode == "mma") {
    decode_mma(decoder, s, i);
  } else if (opcode == "ldmatrix" || opcode == "stmatrix") {
    decode_move(decoder, s, i, opcode == "ldmatrix");
  } else {
    return false;
  }
  return true;
}

}  // namespace emulator
