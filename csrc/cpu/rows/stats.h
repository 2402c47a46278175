// SPDX-License-Identifier: Apache-2.0
// The statistics of a row (common/stats.h), m = max_c x_c and d = sum_c exp(x_c - m), without the two
// rounding errors of the usual computation:
//
// 1. x - m is rounded, and exp turns its absolute error into a relative one: 64 ulp at x - m = -80. Here the
//    terms are e_c = exp(x_c) 2^-N with N = round(m / ln 2). The power of two costs nothing. Two rows or
//    parts of rows with different N are merged by powers of two, that is, exactly. If |m| >= kDirect, the
//    logits are so coarse that x - m is exact for every term that counts: they are shifted by m first.
// 2. In a confident row, d = 1 + small is rounded to 1: the loss log d vanishes, and so does 1 - p. Here the
//    terms of the maximum are counted, not added: d = ties + rest / top.
#pragma once

#include "../../common/exp.h"
#include "../../common/log.h"
#include "../../common/stats.h"
#include "../simd/in_step.h"
#include "arithmetic.h"
#include "loop.h"

namespace softkern::cpu {
namespace {

/// Replaces n numbers q by log(1 + q), in double.
SK_INLINE void log_one_plus_of(double* q, int n) {
  using S = Simd<double>;
  int i = 0;
  for (; i + S::kLanes <= n; i += S::kLanes) S::store(q + i, log_one_plus<S>(S::load(q + i)));
  if (i < n) S::store(q + i, log_one_plus<S>(S::load(q + i, n - i, 0)), n - i);
}

/// The terms e = exp(x) 2^-N of rows with the maxima m, as vectors: all lanes belong to one row, or each lane
/// to another row. kShift: the logits of some rows may have to be shifted.
template <class A, bool kShift = true>
class WideTerms {
  using S = Simd<A>;
  using Reg = typename S::Reg;

 public:
  explicit SK_INLINE WideTerms(const Reg& m) {
    const Reg zero = S::broadcast(0);
    from_ = kShift ? origin_of<Lanes<A>>(m) : zero;
    const Reg highest = kShift ? S::sub(m, from_) : m;
    least_ = S::sub(highest, S::broadcast(ExpRange<A>::kSpan));
    raised_ = S::sub(exp_power<S>(highest), S::broadcast(S::kBias + ExpRange<A>::kRaise));
  }
  SK_INLINE Reg of(const Reg& x) const {
    // The logit is the second operand of max, which max returns for a NaN.
    return exp_shifted<S>(S::max(least_, kShift ? S::sub(x, from_) : x), raised_);
  }
  template <class W>
  SK_INLINE typename W::Reg in_step(const typename W::Reg& x) const {
    return exp_shifted<W>(W::max(W::all(least_), kShift ? W::sub(x, W::all(from_)) : x), W::all(raised_));
  }
  /// Whether all terms of four vectors are 0, as for neighbouring masked classes.
  SK_INLINE bool vanish(const Reg (&x)[4]) const {
    if (kShift) return false;
    // One comparison for each vector: the maximum of several vectors could leave out a NaN.
    return S::all_at_least(least_, x[0]) && S::all_at_least(least_, x[1]) && S::all_at_least(least_, x[2]) &&
           S::all_at_least(least_, x[3]);
  }

 private:
  Reg from_, least_, raised_;
};

/// For rows whose logits are not shifted: nearly all rows.
template <class A>
using DirectTerms = WideTerms<A, false>;

template <class A>
SK_INLINE bool are_direct(const typename Simd<A>::Reg& m) {
  using S = Simd<A>;
  return S::all_at_least(S::broadcast(kDirect - 1), S::max(m, S::sub(S::broadcast(0), m)));
}

/// The same bits, for rows whose terms are also normal numbers: all rows without masked classes.
template <class A>
class NormalTerms {
  using S = Simd<A>;
  using Reg = typename S::Reg;

 public:
  static SK_INLINE bool fit(const Reg& m, const Reg& least) {
    return are_direct<A>(m) && S::all_at_least(least, S::sub(m, S::broadcast(ExpRange<A>::kNormal)));
  }
  static SK_INLINE bool vanish(const Reg (&)[4]) { return false; }
  explicit SK_INLINE NormalTerms(const Reg& m) : biased_(S::sub(exp_power<S>(m), S::broadcast(S::kBias))) {}
  SK_INLINE Reg of(const Reg& x) const { return exp_shifted_normal<S>(x, biased_); }
  template <class W>
  SK_INLINE typename W::Reg in_step(const typename W::Reg& x) const {
    return exp_shifted_normal<W>(x, W::all(biased_));
  }

 private:
  Reg biased_;
};

/// The terms of four vectors.
template <class S, class Terms>
SK_INLINE void four_terms(const Terms& terms, const typename S::Reg (&x)[4], typename S::Reg (&e)[4]) {
  constexpr int K = S::kInStep;
  if constexpr (K == 1) {
    for (int k = 0; k < 4; ++k) e[k] = terms.of(x[k]);
  } else {
    using W = InStep<S, K>;
    SK_UNROLL
    for (int i = 0; i < 4; i += K) {
      typename W::Reg v;
      for (int k = 0; k < K; ++k) v.of[k] = x[i + k];
      const auto t = terms.template in_step<W>(v);
      for (int k = 0; k < K; ++k) e[i + k] = t.of[k];
    }
  }
}

/// d is computed in double, from sums in the compute type.
template <class A>
struct RowStats {
  A m;
  A top;   // e of the maximum; NaN if the maximum is infinite: inf - inf makes the whole row NaN, as in torch
  A ties;  // number of classes with the maximum
  A rest;  // sum of e over the other classes

  /// e_c / sum() = exp(x_c - m) / d.
  SK_INLINE A sum() const { return static_cast<A>(total<OneLane<double>>(ties, top, rest)); }
  SK_INLINE A log_d() const { return static_cast<A>(softkern::log_d<OneLane<double>>(ties, top, rest)); }
  /// d - 1
  SK_INLINE double others() const { return d_less_one<OneLane<double>>(ties, top, rest); }
};

template <class A>
struct RowRange {
  A least, most;
};

template <class A>
SK_INLINE RowRange<A> make_range(const typename Simd<A>::Reg& least, const typename Simd<A>::Reg& most) {
  // Adding +0 turns a maximum of -0 into +0: its sign would depend on the order of the zeros in a row.
  return {reduce_min<A>(least), Simd<A>::reduce_max(most) + A(0)};
}

/// Work on the next rows that is done while the terms of a row are summed.
template <class T>
class Following {
  using A = Compute<T>;
  using S = Simd<A>;

 public:
  /// `fetched` is prefetched, and need not be memory of the process. The range of `ranged` is found, which
  /// costs little beside exponentials and much by itself. Either may be null.
  SK_INLINE Following(const T* fetched, const T* ranged)
      : fetched_(fetched),
        ranged_(ranged),
        most_(S::broadcast(-__builtin_inf())),
        least_(S::broadcast(__builtin_inf())) {}
  SK_INLINE void four(int64_t i) {
    constexpr int64_t kLine = 64 / sizeof(T);
    if (fetched_ != nullptr) {
      for (int64_t k = 0; k < 4 * S::kLanes; k += kLine) __builtin_prefetch(fetched_ + i + k);
    }
    if (ranged_ != nullptr) {
      for (int k = 0; k < 4; ++k) {
        const auto v = S::load(ranged_ + i + k * S::kLanes);
        take(v, v);
      }
    }
  }
  template <class At>
  SK_INLINE void one(const At& at, int64_t i) {
    if (fetched_ != nullptr) __builtin_prefetch(fetched_ + i);
    if (ranged_ == nullptr) return;
    take(at.load(ranged_ + i, -__builtin_inf()), at.load(ranged_ + i, __builtin_inf()));
  }
  SK_INLINE RowRange<A> range() const { return make_range<A>(least_, most_); }

 private:
  /// NaNs are left out, as in Accumulators.
  SK_INLINE void take(const typename S::Reg& high, const typename S::Reg& low) {
    most_ = S::max(high, most_);
    least_ = S::min(low, least_);
  }
  const T *fetched_, *ranged_;
  typename S::Reg most_, least_;
};

/// Step 1 (max). NaNs are left out.
template <class A, class T>
SK_CALL RowRange<A> row_range(const T* x, int64_t n) {
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
  return make_range<A>(least.lane_min(), most.lane_max());
}

/// Step 2 (sum-exp) of a row or of whole blocks of it, given the maximum m of the row. Returns the ties, and
/// passes the sums of the rest to `take`. If e is not null, it receives the terms; it may be the row itself.
/// `following` does its work (Following) beside. kBelow: `take` gets two sums, the second of e (m - x), where
/// terms that are 0 count as 0.
template <class Terms, bool kBelow, class A, class T, class Next, class Take>
SK_INLINE A sum_exp(const T* x, A* e, int64_t n, Next& following, A most, Take take) {
  using S = Simd<A>;
  const A lowest = -__builtin_inf();
  const auto m = S::broadcast(most);
  const auto one = S::broadcast(1);
  const Terms terms(m);
  const WideTerms<A> tail_terms(m);  // for a partial vector, filled up with -inf
  // Counts are exact in any order: a single accumulator leaves registers for the others.
  auto ties = S::broadcast(0);
  for_each_block<A>(n, [&](int64_t start, int64_t size) __attribute__((always_inline)) {
    Accumulators<A> part[kBelow ? 2 : 1];
    const auto add_below = [&](auto slot, const auto& v, const auto& t) __attribute__((always_inline)) {
      if constexpr (kBelow) {
        const auto zero = S::broadcast(0);
        part[1].add(slot, S::if_equal(t, zero, zero, S::mul(t, S::sub(m, v))));
      }
    };
    const auto add = [&](auto slot, const auto& v, const auto& t) __attribute__((always_inline)) {
      ties = S::add_if_equal(ties, one, v, m);
      part[0].add_unless_equal(slot, t, v, m);
      add_below(slot, v, t);
    };
    const auto four = [&](int64_t at) __attribute__((always_inline)) {
      constexpr int64_t L = S::kLanes;
      const int64_t i = start + at;
      typename S::Reg v[4], t[4];
      for (int k = 0; k < 4; ++k) v[k] = S::load(x + i + k * L);
      if (__builtin_expect(terms.vanish(v), 0)) {
        if (e != nullptr) {
          for (int k = 0; k < 4; ++k) S::store(e + i + k * L, S::broadcast(0));
        }
        following.four(i);
        return;
      }
      four_terms<S>(terms, v, t);
      // One comparison serves four vectors, since few vectors have the maximum, and comparisons compete with
      // multiplications for execution units. If a NaN hides a maximum here, all results of these sums are
      // NaN.
      if (__builtin_expect(S::any_equal(S::max(S::max(v[0], v[1]), S::max(v[2], v[3])), m), 0)) {
        add(Slot<0>{}, v[0], t[0]);
        add(Slot<1>{}, v[1], t[1]);
        add(Slot<2>{}, v[2], t[2]);
        add(Slot<3>{}, v[3], t[3]);
      } else {
        part[0].add(t);
        add_below(Slot<0>{}, v[0], t[0]);
        add_below(Slot<1>{}, v[1], t[1]);
        add_below(Slot<2>{}, v[2], t[2]);
        add_below(Slot<3>{}, v[3], t[3]);
      }
      if (e != nullptr) {
        for (int k = 0; k < 4; ++k) S::store(e + i + k * L, t[k]);
      }
      following.four(i);
    };
    for_each_four<A>(size, four, [&](auto slot, auto at, int64_t k) __attribute__((always_inline)) {
      const int64_t i = start + k;
      const auto v = at.load(x + i, lowest);
      typename S::Reg t;
      if constexpr (decltype(at)::kWhole) {
        t = terms.of(v);
      } else {
        t = tail_terms.of(v);
      }
      add(slot, v, t);
      if (e != nullptr) at.store(e + i, t);
      following.one(at, i);
    });
    take(part);
  });
  return S::reduce_add(ties);
}

/// The same, with the shortest exp that the range of the row allows.
template <class A, bool kBelow = false, class T, class Next, class Take>
SK_INLINE A sum_exp_within(const RowRange<A>& range, const T* x, A* e, int64_t n, Next& following,
                           Take take) {
  using S = Simd<A>;
  const auto m = S::broadcast(range.most);
  if (NormalTerms<A>::fit(m, S::broadcast(range.least))) {
    return sum_exp<NormalTerms<A>, kBelow>(x, e, n, following, range.most, take);
  }
  if (are_direct<A>(m)) return sum_exp<DirectTerms<A>, kBelow>(x, e, n, following, range.most, take);
  return sum_exp<WideTerms<A>, kBelow>(x, e, n, following, range.most, take);
}

template <class A>
SK_INLINE RowStats<A> make_stats(A m, A ties, A rest) {
  using S = Simd<A>;
  A top[S::kLanes];
  S::store(top, WideTerms<A>(S::broadcast(m)).of(S::broadcast(m)));
  return {m, top[0], ties, rest};
}

/// Merges the statistics of two parts of a row. Both orders give the same bits. An empty part,
/// make_stats(-inf, 0, 0), and a part of masked classes alone change nothing. A NaN or an infinite logit in
/// either part makes d NaN.
///
/// More parts are merged in pairs. A balanced tree of up to 64 parts is as exact as the row in one part: d
/// within 2.5 ulp, log d within 4.5 ulp. If the parts are merged one after the other, each merge adds its
/// rounding errors: d within 6 ulp, log d within 8 ulp. Another tree gives other bits, so the tree has to be
/// fixed where bits matter. In double, very small values of d - 1 can't be told apart: if the maximum of
/// one part is below kDirect and the maximum of the other is above, by more than 376, the terms of the first
/// part may come out too large, up to e^-376. tests/native/merge.cpp measures all this.
template <class A>
SK_CALL RowStats<A> merge(const RowStats<A>& a, const RowStats<A>& b) {
  using S = Simd<A>;
  const RowStats<A>& larger = a.m < b.m ? b : a;
  A m[S::kLanes] = {a.m, b.m}, ties[S::kLanes] = {a.ties, b.ties}, rest[S::kLanes] = {a.rest, b.rest};
  auto vties = S::load(ties), vrest = S::load(rest);
  move_to<Lanes<A>>(S::broadcast(larger.m), S::load(m), vties, vrest);
  S::store(ties, vties);
  S::store(rest, vrest);
  return {larger.m, larger.top, ties[0] + ties[1], rest[0] + rest[1]};
}

/// Step 2 (sum-exp). `range` is the range of this row, and becomes the range of `ranged`.
template <class A, class T>
SK_CALL RowStats<A> row_stats(const T* x, A* e, int64_t n, const T* fetched, const T* ranged,
                              RowRange<A>& range) {
  const A m = range.most;
  BlockSums<A, 1> all;
  Following<T> following(fetched, ranged);
  const A ties =
      sum_exp_within<A>(range, x, e, n, following,
                        [&](const Accumulators<A>* part) __attribute__((always_inline)) { all.add(part); });
  range = following.range();
  return make_stats<A>(m, ties, all.sums().of[0]);
}

/// Steps 1 (max) and 2 (sum-exp) of one row after the other.
template <class T>
class RowWalk {
  using A = Compute<T>;
  // If rows lag, the next row is read for its range during the sums of this one, so the prefetch begins this
  // many elements past its start. Longer rows are prefetched from the start.
  static constexpr int64_t kAhead = 4096 / sizeof(T);

 public:
  explicit RowWalk(int64_t classes) : classes_(classes), lag_(lags(classes, sizeof(T))) {}
  /// The range of the row at x. If rows lag and this row was `next` of the last row, the range is known.
  /// `next` is a row in place: no other row can have its address.
  SK_INLINE RowRange<A> range(const T* x) const { return x == known_ ? range_ : row_range<A>(x, classes_); }
  SK_INLINE RowStats<A> stats(const T* x, A* e, const T* next, const RowRange<A>& range) {
    range_ = range;
    known_ = lag_ ? next : nullptr;
    return row_stats<A>(x, e, classes_, lag_ && next != nullptr ? next + kAhead : next, known_, range_);
  }

 private:
  int64_t classes_;
  bool lag_;
  const T* known_ = nullptr;
  RowRange<A> range_ = {0, 0};
};

}  // namespace
}  // namespace softkern::cpu
