// SPDX-License-Identifier: Apache-2.0
// exp(x) = 2^n p(r),  n = round(x / ln 2),  r = x - n ln 2: constants and their origin in exp_constants.h.
// At most 1 ulp over the whole range, gradual underflow included; exp(-inf) = 0, exp(inf) = inf, NaN kept.
//
// S is what computes, with registers S::Reg of numbers S::Number: an instruction set of the CPU (a trait of
// cpu/simd), or one thread of a GPU (cuda/numbers.cuh).
#pragma once

#include "exp_constants.h"
#include "inline.h"

namespace softkern {
namespace {

// Adding and subtracting 1.5 * 2^(bits - 1) rounds to an integer in the FPU's own rounding. exp underflows to
// 0 below -kSpan and overflows above kMost: arguments are held there, where ldexp is defined and -inf finite.
// Down to -kNormal the power of two of exp is a normal number, and one multiplication applies it.
template <class A>
struct ExpRange;
template <>
struct ExpRange<float> {
  static constexpr float kRounder = 0x1.8p23f, kSpan = 105.0f, kMost = 89.0f, kNormal = 86.0f;
};
template <>
struct ExpRange<double> {
  static constexpr double kRounder = 0x1.8p52, kSpan = 746.0, kMost = 710.0, kNormal = 707.0;
};

#if !defined(SOFTKERN_EXP)
#define SOFTKERN_EXP SK_INLINE
#endif

/// exp(r) for x = n ln 2 + r and n = round(x / ln 2).
template <class S>
SK_INLINE typename S::Reg exp_remainder(const typename S::Reg& x, const typename S::Reg& n) {
  using K = ExpConstants<typename S::Number>;
  auto r = S::fma(n, S::broadcast(-K::kLn2High), x);  // exact: both are multiples of the same power of two
  r = S::fma(n, S::broadcast(-K::kLn2Low), r);
  auto p = S::broadcast(K::c(K::kDegree));
  SK_UNROLL
  for (int k = K::kDegree - 1; k >= 0; --k) p = S::fma(p, r, S::broadcast(K::c(k)));
  return p;
}

/// kRounder + round(x / ln 2), for |x| < 2^20 or NaN.
template <class S>
SK_INLINE typename S::Reg exp_power(const typename S::Reg& x) {
  return S::fma(x, S::broadcast(ExpConstants<typename S::Number>::kLog2E),
                S::broadcast(ExpRange<typename S::Number>::kRounder));
}

/// exp(x) 2^-N for `power` = kRounder + N.
template <class S>
SOFTKERN_EXP typename S::Reg exp_shifted(const typename S::Reg& x, const typename S::Reg& power) {
  const auto rounder = S::broadcast(ExpRange<typename S::Number>::kRounder);
  const auto n = S::sub(exp_power<S>(x), rounder);
  return S::ldexp(exp_remainder<S>(x, n), S::sub(n, S::sub(power, rounder)));
}

/// The same bits where round(x / ln 2) - N is the exponent of a normal number; biased = kRounder + N - kBias.
template <class S>
SOFTKERN_EXP typename S::Reg exp_shifted_normal(const typename S::Reg& x, const typename S::Reg& biased) {
  const auto t = exp_power<S>(x);
  return S::scale(exp_remainder<S>(x, S::sub(t, S::broadcast(ExpRange<typename S::Number>::kRounder))), t,
                  biased);
}

/// exp(x) where that is a normal number.
template <class S>
SK_INLINE typename S::Reg exp_normal(const typename S::Reg& x) {
  return exp_shifted_normal<S>(x, S::broadcast(ExpRange<typename S::Number>::kRounder - S::kBias));
}

/// The argument is the second operand of max and min, which they return for a NaN.
template <class S>
SK_INLINE typename S::Reg exp(const typename S::Reg& x) {
  using R = ExpRange<typename S::Number>;
  const auto held = S::min(S::broadcast(R::kMost), S::max(S::broadcast(-R::kSpan), x));
  return exp_shifted<S>(held, S::broadcast(R::kRounder));
}

}  // namespace
}  // namespace softkern
