// SPDX-License-Identifier: Apache-2.0
// exp(x) = 2^n p(r),  n = round(x / ln 2),  r = x - n ln 2: constants and their origin in exp_constants.h.
// At most 1 ulp over the whole range, gradual underflow included; exp(-inf) = 0, exp(inf) = inf, NaN kept.
#pragma once

#include "exp_constants.h"
#include "row.h"

namespace softkern::cpu {
namespace {

// Adding and subtracting 1.5 * 2^(bits - 1) rounds to an integer in the FPU's own rounding. exp underflows to
// 0 below -kSpan and overflows above kMost: arguments are held there, where ldexp is defined and -inf finite.
template <class A>
struct ExpRange;
template <>
struct ExpRange<float> {
  static constexpr float kRounder = 0x1.8p23f, kSpan = 105.0f, kMost = 89.0f;
};
template <>
struct ExpRange<double> {
  static constexpr double kRounder = 0x1.8p52, kSpan = 746.0, kMost = 710.0;
};

#if !defined(SOFTKERN_EXP)
#define SOFTKERN_EXP SK_INLINE
#endif

/// exp(x) 2^-shift for |x| < 2^20 or NaN and an integral shift.
template <class A>
SOFTKERN_EXP typename Simd<A>::Reg exp_shifted(const typename Simd<A>::Reg& x,
                                               const typename Simd<A>::Reg& shift) {
  using S = Simd<A>;
  using K = ExpConstants<A>;
  const auto rounder = S::broadcast(ExpRange<A>::kRounder);
  const auto n = S::sub(S::fma(x, S::broadcast(K::kLog2E), rounder), rounder);
  auto r = S::fma(n, S::broadcast(-K::kLn2High), x);  // exact: both are multiples of the same power of two
  r = S::fma(n, S::broadcast(-K::kLn2Low), r);
  auto p = S::broadcast(K::kC[K::kDegree]);
#pragma GCC unroll 16
  for (int k = K::kDegree - 1; k >= 0; --k) p = S::fma(p, r, S::broadcast(K::kC[k]));
  return S::ldexp(p, S::sub(n, shift));
}

template <class A>
SK_INLINE typename Simd<A>::Reg exp(const typename Simd<A>::Reg& x) {
  using S = Simd<A>;
  using R = ExpRange<A>;
  // The argument is the second operand of max and min, which they return for a NaN.
  const auto held = S::min(S::broadcast(R::kMost), S::max(S::broadcast(-R::kSpan), x));
  return exp_shifted<A>(held, S::broadcast(0));
}

/// log(1 + q), q >= 0 or NaN, without losing a small q.
SK_INLINE double log_one_plus(double q, float) {
  // In double 1 + q keeps enough of any q above 2^-12 for a float result; below, q^4/4 is out of its sight.
  return q < 0x1p-12 ? q * (1 - q * (0.5 - q / 3)) : __builtin_log(1 + q);
}
SK_INLINE double log_one_plus(double q, double) { return __builtin_log1p(q); }

}  // namespace
}  // namespace softkern::cpu
