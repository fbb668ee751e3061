// Finds the PTX in what nvcc registers with the runtime.
//
// A fat binary is a header and entries; all of it found by looking at what nvcc 13 writes. Header:
// magic u32, version u16, header bytes u16, bytes of all entries u64. Entry: kind u16 (1 is PTX),
// header bytes u32 at 4, payload bytes u64 at 8, capability u32 at 28.
#include "runtime/fatbinary.h"

#include <cstdint>
#include <cstring>

namespace emulator {
namespace {

constexpr uint32_t kMagic = 0xBA55ED50;
constexpr uint16_t kPtxKind = 1;
constexpr size_t kSmallestHeader = 64;

template <class T>
T read(const char* place) {
  T value;
  std::memcpy(&value, place, sizeof value);
  return value;
}

}  // namespace

FatBinary read_fat_binary(const char* data) {
  FatBinary result;
  if (read<uint32_t>(data) != kMagic) {
    result.contents = "unknown format";
    return result;
  }
  const char* entry = data + read<uint16_t>(data + 6);
  const char* end = entry + read<uint64_t>(data + 8);
  while (entry + kSmallestHeader <= end) {
    const auto kind = read<uint16_t>(entry);
    const auto header_bytes = read<uint32_t>(entry + 4);
    const auto bytes = read<uint64_t>(entry + 8);
    const auto capability = static_cast<int>(read<uint32_t>(entry + 28));
    result.contents += (kind == kPtxKind ? " PTX " : " code ") + std::to_string(capability);
    if (kind == kPtxKind) {
      std::string text(entry + header_bytes, bytes);
      text.resize(strnlen(text.data(), text.size()));
      if (text.find(".version") == std::string::npos) {
        result.contents += " (compressed: build with -Xfatbin -compress-mode=none)";
      } else {
        result.ptx[capability] = std::move(text);
      }
    }
    entry += header_bytes + bytes;
  }
  return result;
}

}  // namespace emulator
