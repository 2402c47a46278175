// SPDX-License-Identifier: Apache-2.0
// One row per lane: an `Order`, FewClasses or AsRows, fixes the order in which the numbers of a row are added
// up, and the precision of the results that are computed from the sums. Vector c of a block holds class c of
// kLanes rows. Lanes are independent of each other: the bits of a row depend on that row alone.
#pragma once

#include "../rows/stats.h"
#include "prefetch.h"
#include "tiles.h"

namespace softkern::cpu {
namespace {

/// Calls body(slot, c) for all classes, with slot c % 2 for class c.
template <class Body>
SK_INLINE void for_each_class(int64_t classes, Body body) {
  int64_t c = 0;
  for (; c + 2 <= classes; c += 2) {
    body(Slot<0>{}, c);
    body(Slot<1>{}, c + 1);
  }
  if (c < classes) body(Slot<0>{}, c);
}

/// Class c is added to accumulator c % 2, and everything is computed in the compute type.
template <class A>
struct FewClasses {
  using S = Simd<A>;
  using Reg = typename S::Reg;

  /// Computes K sums over the classes: body(acc, c) adds the share of class c to acc[0], ..., acc[K - 1].
  template <int K, class Body>
  static SK_INLINE void sum(int64_t classes, Reg (&sums)[K], Body body) {
    Reg odd[K];
    for (int k = 0; k < K; ++k) sums[k] = odd[k] = S::broadcast(0);
    for_each_class(classes, [&](auto slot, int64_t c) __attribute__((always_inline)) {
      body(decltype(slot)::index == 0 ? sums : odd, c);
    });
    for (int k = 0; k < K; ++k) sums[k] = S::add(S::add(sums[k], odd[k]), S::broadcast(0));
  }
  /// RowStats::sum() and RowStats::log_d().
  static SK_INLINE Reg total(const Reg& ties, const Reg& top, const Reg& rest) {
    return softkern::total<Lanes<A>>(ties, top, rest);
  }
  static SK_INLINE Reg log_d(const Reg& ties, const Reg& top, const Reg& rest) {
    return softkern::log_d<Lanes<A>>(ties, top, rest);
  }
};

/// The order and precision of rows/loop.h and rows/stats.h, bit for bit, for rows of one block of sums: the
/// results of a row do not depend on the stride of its classes.
template <class A>
struct AsRows {
  using S = Simd<A>;
  using Reg = typename S::Reg;
  static constexpr int64_t L = S::kLanes, kSlots = 4 * L;

  template <int K, class Body>
  static SK_INLINE void sum(int64_t classes, Reg (&sums)[K], Body body) {
    const Reg zero = S::broadcast(0);
    Reg acc[kSlots * K];
    for (Reg& v : acc) v = zero;
    const int64_t whole = classes / L * L;
    for (int64_t c = 0; c < classes; ++c) {
      // The partial vector of a row goes to the last accumulator.
      body(acc + (c < whole ? c % kSlots : 3 * L + c - whole) * K, c);
    }
    for (int k = 0; k < K; ++k) {
      Reg lane[L];
      for (int64_t l = 0; l < L; ++l) {
        const Reg* const v = acc + l * K + k;
        lane[l] = S::add(S::add(v[0], v[L * K]), S::add(v[2 * L * K], v[3 * L * K]));
        // The way of rows adds the block to +0, which turns -0 into +0.
        lane[l] = S::add(lane[l], zero);
      }
      for (int64_t half = L / 2; half > 0; half /= 2) {
        for (int64_t l = 0; l < half; ++l) lane[l] = S::add(lane[l], lane[l + half]);
      }
      sums[k] = lane[0];
    }
  }
  static SK_INLINE Reg total(const Reg& ties, const Reg& top, const Reg& rest) {
    A sum[L];
    for_each_row(ties, top, rest, [&](int l, const RowStats<A>& row) { sum[l] = row.sum(); });
    return S::load(sum);
  }
  static SK_INLINE Reg log_d(const Reg& ties, const Reg& top, const Reg& rest) {
    using D = Simd<double>;
    double q[L];
    for_each_row(ties, top, rest, [&](int l, const RowStats<A>& row) { q[l] = row.others(); });
    for (int l = 0; l < L; l += D::kLanes) D::store(q + l, log_one_plus<D>(D::load(q + l)));
    A log[L];
    for (int l = 0; l < L; ++l) log[l] = static_cast<A>(q[l]);
    return S::load(log);
  }

 private:
  template <class Body>
  static SK_INLINE void for_each_row(const Reg& ties, const Reg& top, const Reg& rest, Body body) {
    A t[L], p[L], r[L];
    S::store(t, ties);
    S::store(p, top);
    S::store(r, rest);
    for (int l = 0; l < L; ++l) body(l, RowStats<A>{0, p[l], t[l], r[l]});
  }
};

/// The largest and the smallest logits of a block's rows. NaNs are left out, as in Accumulators.
template <class A>
struct LaneRange {
  using S = Simd<A>;
  using Reg = typename S::Reg;
  Reg most, least;
  SK_INLINE LaneRange() {}  // uninitialised: arrays of ranges may have space for more blocks than there are
  SK_INLINE void begin() {
    most = S::broadcast(-__builtin_inf());
    least = S::broadcast(__builtin_inf());
  }
  SK_INLINE void take(const Reg& v) {
    most = S::max(v, most);
    least = S::min(v, least);
  }
  // GCC compiles implicitly defined members without the target instruction set: no implicit copies.
  SK_INLINE void set(const LaneRange& other) {
    most = other.most;
    least = other.least;
  }
};

/// The RowStats of a block, one row per lane.
template <class A, class Order>
struct LaneStats {
  using Reg = typename Simd<A>::Reg;
  Reg m, top, ties, rest;

  SK_INLINE Reg sum() const { return Order::total(ties, top, rest); }
  SK_INLINE Reg log_d() const { return Order::log_d(ties, top, rest); }
};

template <class Terms, class A, class Order>
SK_INLINE void lane_terms(const typename Simd<A>::Reg* x, typename Simd<A>::Reg* e, int64_t classes,
                          LaneStats<A, Order>& stats, A* picked, Ahead& ahead) {
  using S = Simd<A>;
  using Reg = typename S::Reg;
  const Reg one = S::broadcast(1), m = stats.m;
  const Terms terms(m);
  stats.top = terms.of(m);
  if (picked != nullptr) S::store(picked, terms.of(S::load(picked)));
  Reg others = S::broadcast(0), rest[1];  // counts are exact in any order
  Order::sum(classes, rest, [&](Reg* acc, int64_t c) __attribute__((always_inline)) {
    const Reg v = x[c];
    const Reg t = terms.of(v);
    others = S::add_unless_equal(others, one, v, m);
    acc[0] = S::add_unless_equal(acc[0], t, v, m);
    if (e != nullptr) e[c] = t;
    ahead.fetch_line();
  });
  stats.ties = S::sub(S::broadcast(static_cast<A>(classes)), others);
  stats.rest = rest[0];
}

/// Step 2 (sum-exp), after the range. With `keep`, the terms replace the logits. The logits at picked(b) are
/// replaced by their terms too, if picked(b) is not null.
template <class A, class Order, class Picked>
SK_CALL void lane_sums(const LaneTile<A>& x, bool keep, int count, int64_t classes, const LaneRange<A>* range,
                       LaneStats<A, Order>* stats, Ahead ahead, Picked picked) {
  using S = Simd<A>;
  for (int b = 0; b < count; ++b) {
    typename S::Reg* const e = keep ? x[b] : nullptr;
    stats[b].m = S::add(range[b].most, S::broadcast(0));
    if (NormalTerms<A>::fit(stats[b].m, range[b].least)) {
      lane_terms<NormalTerms<A>>(x[b], e, classes, stats[b], picked(b), ahead);
    } else if (are_direct<A>(stats[b].m)) {
      lane_terms<DirectTerms<A>>(x[b], e, classes, stats[b], picked(b), ahead);
    } else {
      lane_terms<WideTerms<A>>(x[b], e, classes, stats[b], picked(b), ahead);
    }
  }
}
template <class A, class Order>
SK_INLINE void lane_sums(const LaneTile<A>& x, bool keep, int count, int64_t classes,
                         const LaneRange<A>* range, LaneStats<A, Order>* stats, const Ahead& ahead) {
  lane_sums(x, keep, count, classes, range, stats, ahead, [](int) -> A* { return nullptr; });
}

}  // namespace
}  // namespace softkern::cpu
