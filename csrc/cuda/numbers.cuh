// SPDX-License-Identifier: Apache-2.0
// One thread's arithmetic: the trait that the formulas of common/ use, divisions, and the terms of a row.
// Compiled without contraction: only what is written as fused is fused, in the same way in every kernel.
#pragma once

#include <type_traits>

#include "../common/exp.h"
#include "../common/log.h"
#include "../common/stats.h"
#include "hardware.h"

namespace softkern::cuda {
namespace {

template <class A>
struct Format;
template <>
struct Format<float> {
  using Bits = uint32_t;
  static constexpr int kMantissa = 23, kBias = 127;
  // Powers of two down to 2^-(kBias + kDown) are applied in two steps; the second step multiplies by
  // 2^-kDown.
  static constexpr int kDown = 64;
  static constexpr float kDownPower = 0x1p-64f;
};
template <>
struct Format<double> {
  using Bits = uint64_t;
  static constexpr int kMantissa = 52, kBias = 1023;
  static constexpr int kDown = 512;
  static constexpr double kDownPower = 0x1p-512;
};

template <class A>
SK_INLINE bool is_finite(A x) {
  return fabs(x) < static_cast<A>(INFINITY);
}

/// 1 / b for b between 2^-100 and 2^100, within an ulp; NaN for NaN. A correctly rounded division calls a
/// function for numbers outside this range, which costs registers.
SK_INLINE float inverse_of(float b) {
  const float inverse = rough_inverse(b);
  return fused(fused(-b, inverse, 1.0f), inverse, inverse);
}
SK_INLINE double inverse_of(double b) {
  double inverse = rough_inverse(static_cast<float>(b));
  inverse = fused(fused(-b, inverse, 1.0), inverse, inverse);
  return fused(fused(-b, inverse, 1.0), inverse, inverse);
}

/// a / b for b in the same range, within an ulp.
template <class A>
SK_INLINE A divide(A a, A b) {
  const A inverse = inverse_of(b);
  const A q = a * inverse;
  return fused(fused(-q, b, a), inverse, q);
}

/// p 2^k for 0.5 <= p < 2 and -(kBias + kDown) < k <= kDown, rounded once if the result is subnormal.
template <class A>
SK_INLINE A scale_by_power(A p, int k) {
  using F = Format<A>;
  const auto power = static_cast<typename F::Bits>(k + F::kBias + F::kDown) << F::kMantissa;
  return p * bits_as<A>(power) * F::kDownPower;
}

/// The trait of arithmetic, with the members that common/exp.h, log.h and stats.h use.
template <class A>
struct Lane {
  using Number = A;
  using Reg = A;
  using Bits = typename Format<A>::Bits;
  static constexpr int kBias = Format<A>::kBias;
  static SK_INLINE A broadcast(A a) { return a; }
  static SK_INLINE A add(A a, A b) { return a + b; }
  static SK_INLINE A sub(A a, A b) { return a - b; }
  static SK_INLINE A mul(A a, A b) { return a * b; }
  static SK_INLINE A div(A a, A b) { return divide(a, b); }
  static SK_INLINE A fma(A a, A b, A c) { return fused(a, b, c); }
  /// The second argument if one of the two is NaN.
  static SK_INLINE A min(A a, A b) { return a < b ? a : b; }
  static SK_INLINE A max(A a, A b) { return a > b ? a : b; }
  /// v 2^(t - s - kBias), as in cpu/simd/contract.h.
  static SK_INLINE A scale(A v, A t, A s) {
    return v * bits_as<A>((bits_as<Bits>(t) - bits_as<Bits>(s)) << Format<A>::kMantissa);
  }
  /// u = 2^k f, sqrt(1/2) <= f < sqrt(2), for a positive normal u.
  static SK_INLINE A split(A u, A& k) {
    using F = Format<A>;
    constexpr Bits kHalfRoot = LogConstants<A>::kHalfRoot;
    const Bits above = bits_as<Bits>(u) - kHalfRoot;
    using Signed = decltype(signed_of(above));
    k = static_cast<A>(static_cast<Signed>(above) >> F::kMantissa);
    return bits_as<A>((above & ((Bits(1) << F::kMantissa) - 1)) + kHalfRoot);
  }
  static SK_INLINE A mul_add(A a, A b, A c) { return fused(a, b, c); }
  static SK_INLINE A count_add(A n, A a, A c) { return fused(n, a, c); }
  static SK_INLINE A divisor(A b) { return inverse_of(b); }
  static SK_INLINE A over(A a, A divisor) { return a * divisor; }
  // softkern::log_one_plus would treat the bits of a NaN as a number.
  static SK_INLINE A log_one_plus(A q) { return q == q ? softkern::log_one_plus<Lane>(q) : q; }
  static SK_INLINE A times_power(A p, A k) {
    return scale_by_power(p, static_cast<int>(at_least(k, A(1 - Format<A>::kBias - Format<A>::kDown))));
  }
  static SK_INLINE A negate(A a) { return -a; }
  static SK_INLINE A abs(A a) { return fabs(a); }
  static SK_INLINE A if_equal(A a, A b, A x, A y) { return a == b ? x : y; }
  static SK_INLINE A if_less(A a, A b, A x, A y) { return a < b ? x : y; }
  static SK_INLINE A if_finite(A a, A x, A y) { return is_finite(a) ? x : y; }
  static SK_INLINE A at_least(A x, A least) { return cuda::at_least(x, least); }
  static SK_INLINE bool all_equal(A a, A b) { return a == b; }

 private:
  static int32_t signed_of(uint32_t);
  static int64_t signed_of(uint64_t);
};

/// See common/stats.h.
template <class A>
SK_INLINE A finite(A m) {
  return softkern::finite<Lane<A>>(m);
}

/// The terms e = exp(x) 2^-N, with N = round(m / ln 2), of a row with the finite maximum m.
template <class A>
class Terms {
  using L = Lane<A>;
  using F = Format<A>;
  using Bits = typename F::Bits;

 public:
  static constexpr A kUnit = 1;
  explicit SK_INLINE Terms(A m) {
    from_ = origin_of<L>(m);
    const A highest = m - from_;
    least_ = highest - ExpRange<A>::kSpan;
    // The low bits of exp_power are round(x / ln 2). In the difference of two powers, only these bits remain.
    const Bits power = bits_as<Bits>(exp_power<L>(highest));
    exponent_ = (Bits(F::kBias + F::kDown) - power) << F::kMantissa;
  }
  SK_INLINE A of(A x) const {
    const A held = at_least(x - from_, least_);
    const A t = exp_power<L>(held);
    const A p = exp_remainder<L>(held, t - ExpRange<A>::kRounder);
    return p * bits_as<A>((bits_as<Bits>(t) << F::kMantissa) + exponent_) * F::kDownPower;
  }

 private:
  A from_, least_;
  Bits exponent_;
};

/// The same terms for rows of 16-bit elements, in three instructions, because the instructions per term limit
/// the speed of such rows. The relative error is at most 2^-16. It is at most 2^-18 for terms above e^-17 of
/// the row's largest term, which covers the range of float16. Results are rounded to 2^-9 (bfloat16) and
/// 2^-12 (float16).
class RoughTerms {
  using L = Lane<float>;
  static constexpr float kLog2E = ExpConstants<float>::kLog2E;
  static constexpr float kLog2ELow =
      static_cast<float>(ExpConstants<double>::kLog2E - static_cast<double>(kLog2E));
  // rough_exp2 has no subnormal results, but bfloat16 has, down to 2^-133. So terms are computed times 2^kUp.
  static constexpr int kUp = 16;

 public:
  /// The unit of the results of `of`.
  static constexpr float kUnit = 0x1p-16f;
  explicit SK_INLINE RoughTerms(float m) : m_(m) {
    const float x = m - origin_of<L>(m);
    const float n = exp_power<L>(x) - ExpRange<float>::kRounder;
    of_m_ = fused(x, kLog2ELow, fused(x, kLog2E, -n)) + kUp;
  }
  SK_INLINE float of(float x) const { return rough_exp2(fused(x - m_, kLog2E, of_m_)); }

 private:
  float m_, of_m_;
};

template <class T>
using TermsOf = std::conditional_t<sizeof(T) == 2, RoughTerms, Terms<Compute<T>>>;

/// exp(x) for x <= 0, -inf included; NaN for NaN. As precise as results of type T need.
template <class T>
SK_INLINE Compute<T> exp_of(Compute<T> x) {
  return TermsOf<T>(0).of(x) * TermsOf<T>::kUnit;
}

}  // namespace
}  // namespace softkern::cuda
