// Special registers.
#include "runtime/specials.h"

#include <cstring>
#include <iterator>

#include "runtime/machine.h"

namespace emulator {
namespace {

struct Thread {
  const Machine& machine;
  const Block& block;
  uint32_t warp;
  uint32_t lane;

  uint32_t linear() const { return warp * kLanes + lane; }
};

struct Special {
  std::string_view name;
  uint32_t (*value)(const Thread&);
};

// Clusters are runs of neighbouring blocks along x.
constexpr Special kSpecials[] = {
    {"%tid.x", [](const Thread& t) { return t.linear() % t.machine.block.x; }},
    {"%tid.y", [](const Thread& t) { return t.linear() / t.machine.block.x % t.machine.block.y; }},
    {"%tid.z", [](const Thread& t) { return t.linear() / t.machine.block.x / t.machine.block.y; }},
    {"%ntid.x", [](const Thread& t) { return t.machine.block.x; }},
    {"%ntid.y", [](const Thread& t) { return t.machine.block.y; }},
    {"%ntid.z", [](const Thread& t) { return t.machine.block.z; }},
    {"%ctaid.x", [](const Thread& t) { return t.block.index.x; }},
    {"%ctaid.y", [](const Thread& t) { return t.block.index.y; }},
    {"%ctaid.z", [](const Thread& t) { return t.block.index.z; }},
    {"%nctaid.x", [](const Thread& t) { return t.machine.grid.x; }},
    {"%nctaid.y", [](const Thread& t) { return t.machine.grid.y; }},
    {"%nctaid.z", [](const Thread& t) { return t.machine.grid.z; }},
    {"%laneid", [](const Thread& t) { return t.lane; }},
    {"%warpid", [](const Thread& t) { return t.warp; }},
    {"%nwarpid", [](const Thread&) { return 64u; }},
    {"%smid", [](const Thread& t) { return static_cast<uint32_t>(t.block.slot); }},
    {"%nsmid",
     [](const Thread& t) { return static_cast<uint32_t>(t.machine.options.multiprocessors); }},
    {"%lanemask_eq", [](const Thread& t) { return 1u << t.lane; }},
    {"%lanemask_lt", [](const Thread& t) { return (1u << t.lane) - 1; }},
    {"%lanemask_le", [](const Thread& t) { return (2u << t.lane) - 1; }},
    {"%lanemask_gt", [](const Thread& t) { return ~((2u << t.lane) - 1); }},
    {"%lanemask_ge", [](const Thread& t) { return ~((1u << t.lane) - 1); }},
    {"%dynamic_smem_size", [](const Thread& t) { return t.machine.dynamic_shared_bytes; }},
    {"%clusterid.x", [](const Thread& t) { return t.block.index.x / t.machine.cluster_blocks; }},
    {"%nclusterid.x", [](const Thread& t) { return t.machine.grid.x / t.machine.cluster_blocks; }},
    {"%cluster_ctaid.x", [](const Thread& t) { return t.block.rank; }},
    {"%cluster_nctaid.x", [](const Thread& t) { return t.machine.cluster_blocks; }},
    {"%cluster_ctarank", [](const Thread& t) { return t.block.rank; }},
    {"%cluster_nctarank", [](const Thread& t) { return t.machine.cluster_blocks; }},
};

}  // namespace

int find_special(std::string_view name) {
  for (size_t i = 0; i < std::size(kSpecials); ++i) {
    if (kSpecials[i].name == name) return static_cast<int>(i);
  }
  return -1;
}

std::vector<char> special_registers(const Machine& machine, const Block& block, int warp) {
  std::vector<char> result(std::size(kSpecials) * 4 * kLanes);
  char* place = result.data();
  for (const Special& special : kSpecials) {
    for (uint32_t lane = 0; lane < kLanes; ++lane, place += 4) {
      const uint32_t value = special.value({machine, block, static_cast<uint32_t>(warp), lane});
      std::memcpy(place, &value, 4);
    }
  }
  return result;
}

}  // namespace emulator
