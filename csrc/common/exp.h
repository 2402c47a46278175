// SPDX-License-Identifier: Apache-2.0
// exp(x) = 2^n p(r),  n = round(x / ln 2),  r = x - n ln 2: constants and their origin in exp_constants.h.
// At most 1 ulp over the whole range, gradual underflow included; exp(-inf) = 0, exp(inf) = inf, NaN kept.
//
// S is the trait that computes, with registers S::Reg of numbers S::Number: an instruction set of the CPU (a
// trait of cpu/simd), or one thread of a GPU (cuda/numbers.cuh).
#pragma once

#include "exp_constants.h"
#include "inline.h"

namespace softkern {
namespace {

// Adding and subtracting kRounder, 1.5 * 2^(bits - 1), rounds to an integer in the rounding mode of the FPU.
//
// exp underflows to 0 below -kSpan and overflows above kMost. Arguments are clamped to these limits, which
// keeps their powers of two in the format and replaces -inf by a finite number. Down to -kNormal, the power
// of two of exp is a normal number, and one multiplication applies it. Below -kNormal, a number 2^kRaise
// times as large is computed first. kLeastRaised is the smallest such number that does not round to 0 when it
// is lowered again. Smaller numbers become 0 before the multiplication, since many CPUs take a hundred cycles
// for a product that underflows, whatever it rounds to.
template <class A>
struct ExpRange;
template <>
struct ExpRange<float> {
  static constexpr float kRounder = 0x1.8p23f, kSpan = ExpConstants<float>::kSpan, kMost = 89.0f,
                         kNormal = 86.0f;
  static constexpr int kRaise = 32;
  static constexpr float kLow = 63.0f;  // (127 - kRaise) ln 2 = 65.8
  static constexpr float kUp = 0x1p32f, kDown = 0x1p-32f;
  static constexpr float kLeastRaised = 0x1.000002p-118f;  // 2^-150, a tie, rounds to 0
};
template <>
struct ExpRange<double> {
  static constexpr double kRounder = 0x1.8p52, kSpan = ExpConstants<double>::kSpan, kMost = 710.0,
                          kNormal = 707.0;
  static constexpr int kRaise = 64;
  static constexpr double kLow = 660.0;  // (1023 - kRaise) ln 2 = 664.7
  static constexpr double kUp = 0x1p64, kDown = 0x1p-64;
  static constexpr double kLeastRaised = 0x1.0000000000001p-1011;  // 2^-1075, a tie, rounds to 0
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

/// exp(x) 2^-N, if round(x / ln 2) - N is the exponent of a normal number; biased = kRounder + N - kBias.
template <class S>
SOFTKERN_EXP typename S::Reg exp_shifted_normal(const typename S::Reg& x, const typename S::Reg& biased) {
  const auto t = exp_power<S>(x);
  return S::scale(exp_remainder<S>(x, S::sub(t, S::broadcast(ExpRange<typename S::Number>::kRounder))), t,
                  biased);
}

/// The same bits, also if the result is subnormal or 0, for round(x / ln 2) - N up to 2;
/// raised = kRounder + N - kBias - kRaise.
template <class S>
SOFTKERN_EXP typename S::Reg exp_shifted(const typename S::Reg& x, const typename S::Reg& raised) {
  using R = ExpRange<typename S::Number>;
  return S::mul_at_least(exp_shifted_normal<S>(x, raised), S::broadcast(R::kDown),
                         S::broadcast(R::kLeastRaised));
}

/// exp(x), if it is a normal number.
template <class S>
SK_INLINE typename S::Reg exp_normal(const typename S::Reg& x) {
  return exp_shifted_normal<S>(x, S::broadcast(ExpRange<typename S::Number>::kRounder - S::kBias));
}

/// exp(x) for x up to kLow. The power of two is raised first, so it overflows at smaller x than in exp(). The
/// argument is the second operand of max, which max returns for a NaN.
template <class S>
SK_INLINE typename S::Reg exp_low(const typename S::Reg& x) {
  using R = ExpRange<typename S::Number>;
  return exp_shifted<S>(S::max(S::broadcast(-R::kSpan), x), S::broadcast(R::kRounder - S::kBias - R::kRaise));
}

template <class S>
SK_INLINE typename S::Reg exp(const typename S::Reg& x) {
  using R = ExpRange<typename S::Number>;
  const auto held = S::min(S::broadcast(R::kMost), S::max(S::broadcast(-R::kSpan), x));
  // Results above 1 are lowered first: the power of two alone could overflow.
  const auto zero = S::broadcast(0);
  const auto biased = S::if_less(held, zero, S::broadcast(R::kRounder - S::kBias - R::kRaise),
                                 S::broadcast(R::kRounder - S::kBias + R::kRaise));
  const auto back = S::if_less(held, zero, S::broadcast(R::kDown), S::broadcast(R::kUp));
  return S::mul_at_least(exp_shifted_normal<S>(held, biased), back, S::broadcast(R::kLeastRaised));
}

}  // namespace
}  // namespace softkern
