// Who knows of whose accesses.
#include "runtime/clocks.h"

#include <algorithm>
#include <utility>

namespace emulator {
namespace {

void raise(Clocks* clocks, const Clocks& other) {
  if (clocks->size() < other.size()) clocks->resize(other.size());
  for (size_t i = 0; i < other.size(); ++i) (*clocks)[i] = std::max((*clocks)[i], other[i]);
}

void merge_into(Foreign* into, const Foreign& from) {
  for (const auto& [block, snapshot] : from) {
    auto& known = (*into)[block];
    if (known == nullptr || known == snapshot) {
      known = snapshot;
      continue;
    }
    auto both = std::make_shared<Snapshot>(*known);
    both->floor = std::max(both->floor, snapshot->floor);
    raise(&both->threads, snapshot->threads);
    known = std::move(both);
  }
}

}  // namespace

std::shared_ptr<const Foreign> merge(const std::shared_ptr<const Foreign>& a,
                                     const std::shared_ptr<const Foreign>& b) {
  if (a == b || b == nullptr) return a;
  if (a == nullptr) return b;
  auto both = std::make_shared<Foreign>(*a);
  merge_into(both.get(), *b);
  return both;
}

void Published::merge(const Published& other) {
  if (empty()) {
    *this = other;
    return;
  }
  merge_into(&blocks, other.blocks);
  is_block_only = is_block_only && other.is_block_only;
}

BlockClocks::BlockClocks(uint32_t block, int threads, uint32_t launch_floor)
    : block_(block), launch_floor_(launch_floor), floor_(launch_floor) {
  const size_t warps = static_cast<size_t>(threads + kLanes - 1) / kLanes;
  warps_.assign(warps, {launch_floor + 1, launch_floor});
  threads_.resize(warps * kLanes);
}

uint32_t BlockClocks::highest_clock() const {
  uint32_t highest = floor_;
  for (const WarpClock& warp : warps_) highest = std::max(highest, warp.clock);
  return highest;
}

Clocks BlockClocks::full_clocks(int warp, int lane) const {
  Clocks clocks = threads_[thread_index(warp, lane)].threads;
  clocks.resize(threads_.size() + 1);
  for (int i = 0; i < kLanes; ++i) {
    uint32_t& known = clocks[thread_index(warp, i)];
    known = std::max(known, warps_[warp].floor);
  }
  clocks[thread_index(warp, lane)] = warps_[warp].clock;
  clocks.back() = std::max(clocks.back(), engine_floor_);
  return clocks;
}

void BlockClocks::learn(ThreadClocks* thread, const Clocks& clocks) {
  raise(&thread->threads, clocks);
  is_simple_ = false;
}

bool BlockClocks::has_met(int warp, int lane, uint32_t block) const {
  const auto& foreign = threads_[thread_index(warp, lane)].foreign;
  return foreign != nullptr && foreign->contains(block);
}

bool BlockClocks::any_knows(uint32_t access_clock, uint32_t access_warp, int access_lane) const {
  for (size_t i = 0; i < threads_.size(); ++i) {
    const int warp = static_cast<int>(i) / kLanes;
    const int lane = static_cast<int>(i) % kLanes;
    if (knows(warp, lane, access_clock, access_warp, access_lane)) return true;
  }
  return false;
}

bool BlockClocks::knows_engine(int warp, int lane, uint32_t clock, uint32_t block) const {
  const ThreadClocks& self = threads_[thread_index(warp, lane)];
  if (block != block_) {
    if (!has_met(warp, lane, block)) return false;
    const Clocks& there = self.foreign->at(block)->threads;
    return !there.empty() && there.back() >= clock;
  }
  if (clock <= engine_floor_) return true;
  const Clocks& known = self.threads;
  return !known.empty() && known.back() >= clock;
}

bool BlockClocks::knows_foreign(int warp, int lane, uint32_t access_clock, uint32_t access_warp,
                                int access_lane) const {
  const auto& foreign = threads_[thread_index(warp, lane)].foreign;
  if (foreign == nullptr) return false;
  const auto found = foreign->find(access_warp / kLanes);
  if (found == foreign->end()) return false;
  const auto index =
      static_cast<size_t>(thread_index(static_cast<int>(access_warp % kLanes), access_lane));
  const Snapshot& snapshot = *found->second;
  return access_clock <= snapshot.floor ||
         (index < snapshot.threads.size() && snapshot.threads[index] >= access_clock);
}

void BlockClocks::barrier_of_all() {
  floor_ = highest_clock();
  for (WarpClock& warp : warps_) warp = {floor_ + 1, floor_};
  if (is_simple_) return;
  std::shared_ptr<const Foreign> foreign;
  for (ThreadClocks& thread : threads_) {
    if (!thread.threads.empty()) engine_floor_ = std::max(engine_floor_, thread.threads.back());
    thread.threads.clear();
    foreign = merge(foreign, thread.foreign);
  }
  for (ThreadClocks& thread : threads_) thread.foreign = foreign;
  is_simple_ = foreign == nullptr;
}

void BlockClocks::sync_warp(int warp, LaneMask lanes, bool is_whole_warp) {
  WarpClock& clocks = warps_[warp];
  if (!is_simple_ || !is_whole_warp) {
    Meeting meeting;
    for_each_lane(lanes, [&](int lane) {
      raise(&meeting.threads, full_clocks(warp, lane));
      meeting.foreign = merge(meeting.foreign, thread(warp, lane).foreign);
    });
    for_each_lane(lanes, [&](int lane) { leave(warp, lane, meeting); });
  }
  if (is_whole_warp) clocks.floor = clocks.clock;
  ++clocks.clock;
}

void BlockClocks::arrive(int warp, int lane, Meeting* meeting) {
  raise(&meeting->threads, full_clocks(warp, lane));
  meeting->foreign = merge(meeting->foreign, thread(warp, lane).foreign);
  ++warps_[warp].clock;
}

void BlockClocks::leave(int warp, int lane, const Meeting& meeting) {
  ThreadClocks& self = thread(warp, lane);
  learn(&self, meeting.threads);
  self.foreign = merge(self.foreign, meeting.foreign);
}

void BlockClocks::engine_arrive(const Meeting& issued, Meeting* meeting) {
  raise(&meeting->threads, issued.threads);
  meeting->threads.back() = std::max(meeting->threads.back(), engine_clock_);
  meeting->foreign = merge(meeting->foreign, issued.foreign);
}

void BlockClocks::late_arrive(const Meeting& issued, Meeting* meeting) {
  raise(&meeting->threads, issued.threads);
  meeting->foreign = merge(meeting->foreign, issued.foreign);
}

Published BlockClocks::publish(int warp, int lane, bool is_block_only) {
  Published result;
  const ThreadClocks& self = thread(warp, lane);
  if (self.foreign != nullptr) result.blocks = *self.foreign;
  auto own = std::make_shared<Snapshot>();
  own->floor = floor_;
  own->threads = full_clocks(warp, lane);
  result.blocks[block_] = std::move(own);
  result.is_block_only = is_block_only;
  ++warps_[warp].clock;
  return result;
}

void BlockClocks::acquire(int warp, int lane, const Published& published) {
  ThreadClocks& self = thread(warp, lane);
  auto foreign = std::make_shared<Foreign>();
  for (const auto& [block, snapshot] : published.blocks) {
    if (block == block_) {
      learn(&self, snapshot->threads);
    } else if (!published.is_block_only) {
      (*foreign)[block] = snapshot;
    }
  }
  if (foreign->empty()) return;
  self.foreign = merge(self.foreign, foreign);
  is_simple_ = false;
}

void BlockClocks::fence(int warp, int lane, bool is_block_only) {
  ThreadClocks& self = thread(warp, lane);
  if (!self.pending.empty()) {
    Published pending = std::exchange(self.pending, {});
    pending.is_block_only = pending.is_block_only || is_block_only;
    acquire(warp, lane, pending);
  }
  self.fence = std::make_shared<Published>(publish(warp, lane, is_block_only));
}

void BlockClocks::proxy_fence(int warp, int lane) {
  ThreadClocks& self = thread(warp, lane);
  if (lane == 0) {
    self.fenced = full_clocks(warp, lane);
    self.fenced_floor = floor_;
  }
  self.proxy_fence = warps_[warp].clock++;
}

bool BlockClocks::is_proxy_fenced(int reader_warp, uint32_t access_clock, uint32_t access_warp,
                                  int access_lane) const {
  const auto writer =
      static_cast<size_t>(thread_index(static_cast<int>(access_warp % kLanes), access_lane));
  const ThreadClocks& reader = threads_[static_cast<size_t>(thread_index(reader_warp, 0))];
  return access_clock <= threads_[writer].proxy_fence || access_clock <= reader.fenced_floor ||
         (writer < reader.fenced.size() && access_clock <= reader.fenced[writer]);
}

}  // namespace emulator
