// SPDX-License-Identifier: Apache-2.0
// exp(x) = 2^n p(r),  n = round(x / ln 2),  r = x - n ln 2: constants and their origin in exp_constants.h.
// At most 1 ulp over the whole range, gradual underflow included; exp(-inf) = 0, exp(inf) = inf, NaN kept.
#pragma once

#include "exp_constants.h"
#include "row.h"

namespace softkern::cpu {
namespace {

// Adding and subtracting 1.5 * 2^(bits - 1) rounds to an integer in the FPU's own rounding. kLeast and
// kMost lie beyond the arguments whose result is 0 or inf; they keep n where ldexp is defined, and -inf
// finite.
template <class A>
struct ExpRange;
template <>
struct ExpRange<float> {
  static constexpr float kRounder = 0x1.8p23f, kLeast = -105.0f, kMost = 89.0f;
};
template <>
struct ExpRange<double> {
  static constexpr double kRounder = 0x1.8p52, kLeast = -746.0, kMost = 710.0;
};

#if !defined(SOFTKERN_EXP)
#define SOFTKERN_EXP SK_INLINE
#endif

template <class A>
SOFTKERN_EXP typename Simd<A>::Reg exp(const typename Simd<A>::Reg& argument) {
  using S = Simd<A>;
  using K = ExpConstants<A>;
  using R = ExpRange<A>;
  const auto rounder = S::broadcast(R::kRounder);
  // The argument is the second operand of max and min, which they return for a NaN.
  const auto x = S::min(S::broadcast(R::kMost), S::max(S::broadcast(R::kLeast), argument));
  const auto n = S::sub(S::fma(x, S::broadcast(K::kLog2E), rounder), rounder);
  auto r = S::fma(n, S::broadcast(-K::kLn2High), x);
  r = S::fma(n, S::broadcast(-K::kLn2Low), r);
  auto p = S::broadcast(K::kC[K::kDegree]);
#pragma GCC unroll 16
  for (int k = K::kDegree - 1; k >= 0; --k) p = S::fma(p, r, S::broadcast(K::kC[k]));
  return S::ldexp(p, n);
}

// In double, so that log d adds no error of its own; one call a row.
SK_INLINE float log_of(float d) { return static_cast<float>(__builtin_log(static_cast<double>(d))); }
SK_INLINE double log_of(double d) { return __builtin_log(d); }

/// (m, d) of a row or of a part of one: m = max x, d = sum exp(x - m).
template <class A>
struct MaxSum {
  A m;
  A d;
};

template <class A, class T>
SK_INLINE A row_max(const T* x, int64_t n) {
  const A lowest = -__builtin_inf();
  Accumulators<A> m(lowest);
  for_each_vector<A>(n, [&](auto slot, auto at, int64_t i)
                            __attribute__((always_inline)) { m.take_max(slot, at.load(x + i, lowest)); });
  return m.max();
}

/// 1 max, 2 sum-exp. e, where given, receives exp(x - m); it may be the row itself.
template <class A, class T>
SK_INLINE MaxSum<A> max_sum(const T* x, A* e, int64_t n) {
  using S = Simd<A>;
  const A lowest = -__builtin_inf();
  const A m = row_max<A>(x, n);  // 1 max
  const auto vm = S::broadcast(m);
  Accumulators<A> d(0);
  for_each_vector<A>(n, [&](auto slot, auto at, int64_t i) __attribute__((always_inline)) {  // 2 sum-exp
    const auto v = exp<A>(S::sub(at.load(x + i, lowest), vm));
    d.add(slot, v);
    if (e != nullptr) at.store(e + i, v);
  });
  return {m, d.sum()};
}

}  // namespace
}  // namespace softkern::cpu
