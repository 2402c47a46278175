// SPDX-License-Identifier: Apache-2.0
// The traits with which the formulas of common/ compute on the CPU: Lanes for vectors with one row per lane,
// OneLane for one number of a row. common/stats.h lists their members.
#pragma once

#include "../../common/log.h"
#include "../../common/stats.h"
#include "../simd/contract.h"

namespace softkern::cpu {
namespace {

template <class A>
struct Lanes : Simd<A> {
  using S = Simd<A>;
  using Reg = typename S::Reg;
  static SK_INLINE Reg mul_add(const Reg& a, const Reg& b, const Reg& c) { return S::add(S::mul(a, b), c); }
  static SK_INLINE Reg count_add(const Reg& n, const Reg& a, const Reg& c) { return S::fma(n, a, c); }
  static SK_INLINE const Reg& divisor(const Reg& b) { return b; }
  static SK_INLINE Reg over(const Reg& a, const Reg& divisor) { return S::div(a, divisor); }
  static SK_INLINE Reg log_one_plus(const Reg& q) { return softkern::log_one_plus<S>(q); }
  static SK_INLINE Reg times_power(const Reg& p, const Reg& k) {
    using R = ExpRange<A>;
    // As in exp, a number 2^kRaise times as large is made first: products that underflow are slow.
    const auto held = S::max(S::broadcast(1 - S::kBias - R::kRaise), k);
    const auto raised = S::scale(p, S::add(held, S::broadcast(R::kRounder)),
                                 S::broadcast(R::kRounder - S::kBias - R::kRaise));
    return S::mul_at_least(raised, S::broadcast(R::kDown), S::broadcast(R::kLeastRaised));
  }
  static SK_INLINE Reg negate(const Reg& a) { return S::sub(S::broadcast(0), a); }
  static SK_INLINE Reg abs(const Reg& a) { return S::max(a, negate(a)); }
  static SK_INLINE Reg if_finite(const Reg& a, const Reg& x, const Reg& y) {
    return S::if_less(abs(a), S::broadcast(__builtin_inf()), x, y);
  }
  static SK_INLINE Reg at_least(const Reg& x, const Reg& least) { return S::max(least, x); }
  static SK_INLINE bool all_equal(const Reg& a, const Reg& b) {
    return S::all_at_least(a, b) && S::all_at_least(b, a);
  }
};

/// For whole rows, which compute one number at a time from their sums.
template <class A>
struct OneLane {
  using Number = A;
  using Reg = A;
  static SK_INLINE A broadcast(A a) { return a; }
  static SK_INLINE A add(A a, A b) { return a + b; }
  static SK_INLINE A sub(A a, A b) { return a - b; }
  static SK_INLINE A mul(A a, A b) { return a * b; }
  static SK_INLINE A div(A a, A b) { return a / b; }
  static SK_INLINE A mul_add(A a, A b, A c) { return a * b + c; }
  static SK_INLINE A count_add(A n, A a, A c) { return n * a + c; }
  static SK_INLINE A divisor(A b) { return b; }
  static SK_INLINE A over(A a, A divisor) { return a / divisor; }
  static SK_INLINE A log_one_plus(A q) {
    using S = Simd<A>;
    A lanes[S::kLanes] = {q};
    S::store(lanes, softkern::log_one_plus<S>(S::load(lanes)));
    return lanes[0];
  }
  static SK_INLINE A negate(A a) { return -a; }
  static SK_INLINE A if_equal(A a, A b, A x, A y) { return a == b ? x : y; }
};

}  // namespace
}  // namespace softkern::cpu
