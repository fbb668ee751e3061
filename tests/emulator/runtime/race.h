// The race checker: holds every access against those before it that nothing orders.
#pragma once

#include <string>

#include "runtime/clocks.h"
#include "runtime/shadow.h"

namespace emulator {

// A thread that accesses memory.
struct Actor {
  BlockClocks* clocks;
  int warp;
  int lane;
  uint32_t warp_id;  // clocks->warp_id(warp)
  uint32_t clock;    // clocks->clock(warp)
  uint32_t floor;    // clocks->floor()
};

inline Actor make_actor(BlockClocks* clocks, int warp, int lane) {
  return {clocks, warp, lane, clocks->warp_id(warp), clocks->clock(warp), clocks->floor()};
}

enum class Strength { kPlain, kStrong };  // strong: atomics, volatile, relaxed and stronger

// What the memory is called in reports: "shared memory", "global memory (range of 64 bytes)".
struct Place {
  const char* kind;
  size_t bytes;
};

// All throw Fault for a race, a read of memory nobody wrote, or one of data in flight.
void check_read(Shadow* shadow, size_t offset, size_t bytes, const Actor& actor, Strength strength,
                const Place& place);
void check_write(Shadow* shadow, size_t offset, size_t bytes, const Actor& actor, Strength strength,
                 const Place& place);

// The destination of a copy that runs on its own, and its end: when the thread waited for it, or
// when the bulk copy engine is done.
void start_copy(Shadow* shadow, size_t offset, size_t bytes, const Actor& actor, bool is_bulk,
                const Place& place);
void finish_copy(Shadow* shadow, size_t offset, size_t bytes, const Actor& actor);
void finish_bulk_copy(Shadow* shadow, size_t offset, size_t bytes, BlockClocks* clocks);

// Memory that matrix instructions read through the async proxy: also needs fence.proxy.async.
void check_async_proxy(Shadow* shadow, size_t offset, size_t bytes, const Actor& actor,
                       const Place& place);

// Written by the host: by cudaMemset, cudaMemcpy.
void mark_written(Shadow* shadow, size_t offset, size_t bytes);

}  // namespace emulator
