// The race checker.
#include "runtime/race.h"

#include "runtime/fault.h"

namespace emulator {
namespace {

constexpr size_t kMostReaders = 32;  // remembered of a cell, beyond the first

struct Access {
  const Actor& actor;
  Strength strength;
  const Place& place;
};

std::string thread_name(const Actor& actor, uint32_t warp_id, int lane) {
  const int thread = static_cast<int>(warp_id % kLanes) * kLanes + lane;
  const uint32_t block = warp_id / kLanes;
  std::string name = "thread " + std::to_string(thread);
  if (block != actor.clocks->block()) name += " of block " + std::to_string(block);
  return name;
}

[[noreturn]] void report(const Access& access, const std::string& what, size_t offset) {
  throw Fault(FaultKind::kFailure,
              what + ": byte " + std::to_string(offset) + " of " + access.place.kind + " (" +
                  std::to_string(access.place.bytes) + " bytes)",
              access.actor.lane);
}

[[noreturn]] void report_race(const Access& access, const char* what, uint32_t warp_id, int lane,
                              size_t offset) {
  const bool is_foreign = warp_id / kLanes != access.actor.clocks->block();
  std::string text = is_foreign ? "RACE between blocks: " : "RACE: ";
  text += what;
  text += " by " + thread_name(access.actor, warp_id, lane);
  report(access, text, offset);
}

bool knows(const Actor& actor, const Reader& reader) {
  if (reader.clock <= actor.clocks->launch_floor()) return true;
  bool result = true;
  for_each_lane(reader.lanes, [&](int lane) {
    result = result && actor.clocks->knows(actor.warp, actor.lane, reader.clock, reader.warp, lane);
  });
  return result;
}

bool knows_last_write(const Cell& cell, const Access& access) {
  const Actor& actor = access.actor;
  switch (cell.state) {
    case CellState::kUntouched:
      return true;
    case CellState::kBulk:
      return actor.clocks->knows_engine(actor.warp, actor.lane, cell.write_clock,
                                        cell.write_warp / kLanes);
    case CellState::kAtomic:
      if (access.strength == Strength::kStrong) return true;
      [[fallthrough]];
    default:
      return actor.clocks->knows(actor.warp, actor.lane, cell.write_clock, cell.write_warp,
                                 cell.write_lane);
  }
}

void report_in_flight(const Cell& cell, const Access& access, const char* what, size_t offset) {
  if (cell.state < CellState::kInFlight) return;
  const char* copy = cell.state == CellState::kInFlight ? "cp.async" : "cp.async.bulk";
  report(access,
         std::string("RACE: ") + what + " in-flight " + copy + " data of " +
             thread_name(access.actor, cell.write_warp, cell.write_lane),
         offset);
}

// Puts a reader where another one is no longer needed, or beside the others.
void remember_reader(Shadow* shadow, Cell* cell, const Actor& actor) {
  const LaneMask lane = lane_bit(actor.lane);
  const Reader self{actor.clock, actor.warp_id, lane};
  if (cell->reader.lanes == 0 || knows(actor, cell->reader)) {
    cell->reader = self;
    return;
  }
  std::vector<Reader>& others = shadow->more_readers(cell);
  Reader* free_place = nullptr;
  for (Reader& other : others) {
    if (other.warp == self.warp && other.clock == self.clock) {
      other.lanes |= lane;
      return;
    }
    if (free_place == nullptr && knows(actor, other)) free_place = &other;
  }
  if (free_place != nullptr) {
    *free_place = self;
  } else if (others.size() < kMostReaders) {
    others.push_back(self);
  } else {
    others[(actor.warp_id * 7 + static_cast<uint32_t>(actor.lane)) % kMostReaders] = self;
  }
}

void read_cell(Shadow* shadow, Cell* cell, const Access& access, size_t offset) {
  const Actor& actor = access.actor;
  const bool is_own_block = cell->write_warp / kLanes == actor.clocks->block();
  if (cell->state != CellState::kWritten || !is_own_block || cell->write_clock > actor.floor) {
    report_in_flight(*cell, access, "read of", offset);
    if (cell->state == CellState::kUntouched && shadow->is_undefined()) {
      report(access, "read of memory nobody wrote", offset);
    }
    if (!knows_last_write(*cell, access)) {
      report_race(access, "read of an unordered write", cell->write_warp, cell->write_lane, offset);
    }
  }
  cell->has_plain_reader |= access.strength == Strength::kPlain;
  if (cell->reader.warp == actor.warp_id && cell->reader.clock == actor.clock &&
      cell->reader.lanes != 0) {
    cell->reader.lanes |= lane_bit(actor.lane);
  } else {
    remember_reader(shadow, cell, actor);
  }
}

void check_reader(const Reader& reader, const Access& access, size_t offset) {
  const Actor& actor = access.actor;
  for_each_lane(reader.lanes, [&](int lane) {
    if (!actor.clocks->knows(actor.warp, actor.lane, reader.clock, reader.warp, lane)) {
      report_race(access, "write after an unordered read", reader.warp, lane, offset);
    }
  });
}

void write_cell(Shadow* shadow, Cell* cell, const Access& access, size_t offset,
                CellState new_state) {
  const Actor& actor = access.actor;
  report_in_flight(*cell, access, "write over", offset);
  if (!knows_last_write(*cell, access)) {
    report_race(access, "write after an unordered write", cell->write_warp, cell->write_lane,
                offset);
  }
  if (cell->has_plain_reader || access.strength == Strength::kPlain) {
    check_reader(cell->reader, access, offset);
    if (cell->more != 0) {
      std::vector<Reader>& others = shadow->more_readers(cell);
      for (const Reader& other : others) check_reader(other, access, offset);
      others.clear();
    }
  }
  cell->reader.lanes = 0;
  cell->has_plain_reader = false;
  cell->write_clock = actor.clock;
  cell->write_warp = actor.warp_id;
  cell->write_lane = static_cast<uint8_t>(actor.lane);
  cell->state = new_state;
}

}  // namespace

void check_read(Shadow* shadow, size_t offset, size_t bytes, const Actor& actor, Strength strength,
                const Place& place) {
  const Access access{actor, strength, place};
  shadow->visit(offset, bytes,
                [&](Cell& cell, size_t at, size_t) { read_cell(shadow, &cell, access, at); });
}

void check_write(Shadow* shadow, size_t offset, size_t bytes, const Actor& actor, Strength strength,
                 const Place& place) {
  const Access access{actor, strength, place};
  const CellState state = strength == Strength::kStrong ? CellState::kAtomic : CellState::kWritten;
  shadow->visit(offset, bytes, [&](Cell& cell, size_t at, size_t) {
    write_cell(shadow, &cell, access, at, state);
  });
}

void start_copy(Shadow* shadow, size_t offset, size_t bytes, const Actor& actor, bool is_bulk,
                const Place& place) {
  const Access access{actor, Strength::kPlain, place};
  const CellState state = is_bulk ? CellState::kBulkInFlight : CellState::kInFlight;
  shadow->visit(offset, bytes, [&](Cell& cell, size_t at, size_t) {
    write_cell(shadow, &cell, access, at, state);
  });
}

void finish_copy(Shadow* shadow, size_t offset, size_t bytes, const Actor& actor) {
  shadow->visit(offset, bytes, [&](Cell& cell, size_t, size_t) {
    cell.state = CellState::kWritten;
    cell.write_clock = actor.clock;
  });
}

void finish_bulk_copy(Shadow* shadow, size_t offset, size_t bytes, BlockClocks* clocks) {
  shadow->visit(offset, bytes, [&](Cell& cell, size_t, size_t) {
    cell.state = CellState::kBulk;
    cell.write_clock = clocks->engine_clock();
  });
}

void check_async_proxy(Shadow* shadow, size_t offset, size_t bytes, const Actor& actor,
                       const Place& place) {
  const Access access{actor, Strength::kPlain, place};
  shadow->visit(offset, bytes, [&](Cell& cell, size_t at, size_t) {
    read_cell(shadow, &cell, access, at);
    const bool is_generic = cell.state == CellState::kWritten || cell.state == CellState::kAtomic;
    if (is_generic && !actor.clocks->is_proxy_fenced(actor.warp, cell.write_clock, cell.write_warp,
                                                     cell.write_lane)) {
      report_race(access, "async read without fence.proxy.async after the write", cell.write_warp,
                  cell.write_lane, at);
    }
  });
}

void mark_written(Shadow* shadow, size_t offset, size_t bytes) {
  shadow->visit(offset, bytes, [&](Cell& cell, size_t, size_t) {
    cell.state = CellState::kWritten;
    cell.write_clock = 0;
    cell.reader.lanes = 0;
  });
}

}  // namespace emulator
