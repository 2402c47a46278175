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
#include "log.h"

namespace softkern::cpu {
namespace {

/// The terms e = exp(x) 2^-N of rows with the maxima m, as vectors: one row's in all lanes, or a row a lane.
template <class A>
class Terms {
  using S = Simd<A>;
  using R = ExpRange<A>;
  using Reg = typename S::Reg;

 public:
  explicit SK_INLINE Terms(const Reg& m) {
    constexpr A kDirect = 1024;
    const Reg zero = S::broadcast(0);
    from_ = S::if_less(S::max(m, S::sub(zero, m)), S::broadcast(kDirect), zero, m);
    highest_ = S::sub(m, from_);
    least_ = S::sub(highest_, S::broadcast(R::kSpan));
    power_ = exp_power<A>(highest_);
    biased_ = S::sub(power_, S::broadcast(S::kBias));
  }
  /// Whether no logit of rows with these minima is shifted and all terms are normal numbers: by far the most
  /// frequent case.
  SK_INLINE bool all_normal(const Reg& least) const {
    return S::all_at_least(S::broadcast(0), S::max(from_, S::sub(S::broadcast(0), from_))) &&
           S::all_at_least(least, S::sub(highest_, S::broadcast(R::kNormal)));
  }
  template <bool kNormal>
  SK_INLINE Reg of(const Reg& x) const {
    if constexpr (kNormal) {
      return exp_shifted_normal<A>(x, biased_);
    } else {
      // The logit is max's second operand: a NaN stays.
      return exp_shifted<A>(S::max(least_, S::sub(x, from_)), power_);
    }
  }

 private:
  Reg from_, highest_, least_, power_, biased_;
};

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
        log_one_plus_of((static_cast<double>(ties) - 1) + static_cast<double>(rest) / top));
  }
};

template <class A>
struct RowRange {
  A least, most;
};

/// 1 max. NaNs are left out.
template <class A, class T>
SK_INLINE RowRange<A> row_range(const T* x, int64_t n) {
  const A inf = __builtin_inf();
  Accumulators<A> most(-inf), least(inf);
  for_each_vector<A>(n, [&](auto slot, auto at, int64_t i) __attribute__((always_inline)) {
    if constexpr (decltype(at)::kWhole) {
      const auto v = at.load(x + i, 0);
      most.take_max(slot, v);
      least.take_min(slot, v);
    } else {
      most.take_max(slot, at.load(x + i, -inf));
      least.take_min(slot, at.load(x + i, inf));
    }
  });
  // Whether the maximum of a row of zeros is -0 or +0 would depend on their order.
  return {least.min(), most.max() + A(0)};
}

/// 2 sum-exp. e, where given, receives the terms; it may be the row itself.
template <class A, bool kNormal, class T>
SK_INLINE void sum_exp(const T* x, A* e, int64_t n, const Terms<A>& terms, const T* next,
                       RowStats<A>& stats) {
  using S = Simd<A>;
  const A lowest = -__builtin_inf();
  const auto m = S::broadcast(stats.m);
  const auto one = S::broadcast(1);
  // Counts are exact in any order: one accumulator, which leaves registers to the others.
  auto ties = S::broadcast(0);
  const auto rest =
      sum_row<A, 1>(n, [&](auto* part, auto slot, auto at, int64_t i) __attribute__((always_inline)) {
        const auto v = at.load(x + i, lowest);
        const auto t = terms.template of<kNormal && decltype(at)::kWhole>(v);
        ties = S::add_if_equal(ties, one, v, m);
        part->add_unless_equal(slot, t, v, m);
        if (e != nullptr) at.store(e + i, t);
        if (next != nullptr) __builtin_prefetch(next + i);
      });
  stats.ties = S::reduce_add(ties);
  stats.rest = rest.of[0];
}

/// 1 max, 2 sum-exp. `next` is a row to be fetched into the cache meanwhile, or null.
template <class A, class T>
SK_CALL RowStats<A> row_stats(const T* x, A* e, int64_t n, const T* next) {
  using S = Simd<A>;
  const RowRange<A> range = row_range<A>(x, n);
  const auto vm = S::broadcast(range.most);
  const Terms<A> terms(vm);
  A top[S::kLanes];
  S::store(top, terms.template of<false>(vm));
  RowStats<A> stats{range.most, top[0], 0, 0};
  if (terms.all_normal(S::broadcast(range.least))) {
    sum_exp<A, true>(x, e, n, terms, next, stats);
  } else {
    sum_exp<A, false>(x, e, n, terms, next, stats);
  }
  return stats;
}

}  // namespace
}  // namespace softkern::cpu
