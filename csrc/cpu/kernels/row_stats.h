// SPDX-License-Identifier: Apache-2.0
// The statistics of a row, m = max_c x_c and d = sum_c exp(x_c - m), without the two roundings that usually
// go into them:
//
// 1. x - m is rounded, and exp turns its absolute error into a relative one: 64 ulp at x - m = -80. Here the
//    terms are e_c = exp(x_c) 2^-N with N = round(m / ln 2). The power of two costs nothing, and two rows or
//    parts of rows with different N are merged by powers of two, that is exactly. Where |m| >= kDirect the
//    logits are so coarse that x - m is exact for every term that counts: they are shifted by m first.
// 2. d = 1 + small, and the loss log d of a confident row vanishes, with it 1 - p. Here the terms of the
//    maximum are counted, not added: d = ties + rest / top.
#pragma once

#include "exp.h"

namespace softkern::cpu {
namespace {

template <class A>
struct RowStats {
  A m;
  A top;   // e of the maximum; NaN if that is infinite: inf - inf makes the whole row NaN, as in torch
  A ties;  // how many classes have it
  A rest;  // sum of e over the other classes

  /// sum of e; e_c / sum() = exp(x_c - m) / d.
  SK_INLINE A sum() const { return static_cast<A>(static_cast<double>(ties) * top + rest); }
  /// log d
  SK_INLINE A log_d() const {
    return static_cast<A>(
        log_one_plus((static_cast<double>(ties) - 1) + static_cast<double>(rest) / top, A()));
  }
};

template <class A, class T>
SK_INLINE A row_max(const T* x, int64_t n) {
  const A lowest = -__builtin_inf();
  Accumulators<A> m(lowest);
  for_each_vector<A>(n, [&](auto slot, auto at, int64_t i)
                            __attribute__((always_inline)) { m.take_max(slot, at.load(x + i, lowest)); });
  return m.max();
}

/// 1 max, 2 sum-exp. e, where given, receives the terms; it may be the row itself. A call a row: inlined into
/// every op and option it would be most of the compile time.
template <class A, class T>
__attribute__((noinline)) RowStats<A> row_stats(const T* x, A* e, int64_t n) {
  using S = Simd<A>;
  constexpr A kDirect = 1024;
  const A lowest = -__builtin_inf();
  const A m = row_max<A>(x, n);  // 1 max

  const A from = m > -kDirect && m < kDirect ? A(0) : m;
  const A highest = m - from;
  const auto vm = S::broadcast(m);
  const auto vfrom = S::broadcast(from);
  const auto least = S::broadcast(highest - ExpRange<A>::kSpan);
  const auto rounder = S::broadcast(ExpRange<A>::kRounder);
  const auto shift =
      S::sub(S::fma(S::broadcast(highest), S::broadcast(ExpConstants<A>::kLog2E), rounder), rounder);
  const auto term = [&](const auto& v) __attribute__((always_inline)) {
    // The logit is max's second operand: a NaN stays.
    return exp_shifted<A>(S::max(least, S::sub(v, vfrom)), shift);
  };
  A top[S::kLanes];
  S::store(top, term(vm));

  const auto one = S::broadcast(1);
  const auto sums = sum_row<A, 2>(
      n, [&](auto* part, auto slot, auto at, int64_t i) __attribute__((always_inline)) {  // 2 sum-exp
        const auto v = at.load(x + i, lowest);
        const auto t = term(v);
        part[0].add_if_equal(slot, one, v, vm);
        part[1].add_unless_equal(slot, t, v, vm);
        if (e != nullptr) at.store(e + i, t);
      });
  return {m, top[0], sums.of[0], sums.of[1]};
}

}  // namespace
}  // namespace softkern::cpu
