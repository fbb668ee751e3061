// Loops over lanes, which most handlers are made of.
#pragma once

#include <immintrin.h>

#include <algorithm>

#include "runtime/machine.h"

namespace emulator {

// d[lane] = f(lane) for the lanes that run; f returns the lane's stored form.
template <class Stored, class F>
inline void each_lane(Execution& x, Slot d, F f) {
  Stored* out = x.at<Stored>(d);
  if (x.mask == kAllLanes) {
#pragma GCC ivdep
    for (int lane = 0; lane < kLanes; ++lane) out[lane] = f(lane);
  } else {
    for_each_lane(x.mask, [&](int lane) { out[lane] = f(lane); });
  }
}

// A result of R computed from sources of A (and B, C), lane by lane.
template <class R, class A, class F>
inline void unary(Execution& x, const Instruction& i, F f) {
  const Storage<A>* a = x.at<Storage<A>>(i.a);
  each_lane<Storage<R>>(x, i.d,
                        [&](int lane) { return pack<R>(static_cast<R>(f(unpack<A>(a[lane])))); });
}

template <class R, class A, class B, class F>
inline void binary(Execution& x, const Instruction& i, F f) {
  const Storage<A>* a = x.at<Storage<A>>(i.a);
  const Storage<B>* b = x.at<Storage<B>>(i.b);
  each_lane<Storage<R>>(x, i.d, [&](int lane) {
    return pack<R>(static_cast<R>(f(unpack<A>(a[lane]), unpack<B>(b[lane]))));
  });
}

template <class R, class A, class B, class C, class F>
inline void ternary(Execution& x, const Instruction& i, F f) {
  const Storage<A>* a = x.at<Storage<A>>(i.a);
  const Storage<B>* b = x.at<Storage<B>>(i.b);
  const Storage<C>* c = x.at<Storage<C>>(i.c);
  each_lane<Storage<R>>(x, i.d, [&](int lane) {
    return pack<R>(static_cast<R>(f(unpack<A>(a[lane]), unpack<B>(b[lane]), unpack<C>(c[lane]))));
  });
}

// A mask of the lanes for which f holds, of all 32: the caller knows which of them count.
template <class F>
inline LaneMask lanes_where(F f) {
  int32_t holds[kLanes];
#pragma GCC ivdep
  for (int lane = 0; lane < kLanes; ++lane) holds[lane] = f(lane) ? -1 : 0;
  LaneMask result = 0;
  for (int part = 0; part < kLanes / 8; ++part) {
    const __m256 eight = _mm256_loadu_ps(reinterpret_cast<const float*>(holds + 8 * part));
    result |= static_cast<LaneMask>(_mm256_movemask_ps(eight)) << (8 * part);
  }
  return result;
}

inline void set_predicate(Execution& x, Slot d, LaneMask value) {
  LaneMask& predicate = x.predicate(d);
  predicate = (predicate & ~x.mask) | (value & x.mask);
}

}  // namespace emulator
