// SPDX-License-Identifier: Apache-2.0
// The statistics of a row or of a part of it: m = max_c x_c and d = sum_c exp(x_c - m). d is kept as `ties`,
// the number of classes with the maximum, and `rest`, the sum of the terms of the other classes:
// d = ties + rest / top. A term is e_c = exp(x_c) 2^-N with N = round(m / ln 2), and `top` is the term of the
// maximum. cpu/rows/stats.h says which rounding errors this form avoids. A part without classes has m = -inf,
// ties = 0, rest = 0.
//
// The formulas of this file, of mass.h and of loss.h are written once, for all backends. They compute with a
// trait S, as exp.h does. The order in which classes are added up is the choice of the backend. So are these
// members of S, and with them the last bit of a result:
//
//   mul_add(a, b, c)    a b + c. One fused operation on a GPU; a multiplication and an addition on the CPU,
//                       where rows compute one number at a time: without a fused multiply-add in hardware,
//                       the compiler would call a function.
//   count_add(n, a, c)  n a + c for a small whole number n. Fused in lanes and on a GPU. Rows of the CPU
//                       compute it in double, where the product of a float and n is exact.
//   divisor(b)          The second argument of over(): b on the CPU, its inverse on a GPU.
//   over(a, divisor)    a / b: a division on the CPU, a multiplication on a GPU.
//   log_one_plus(q)     log(1 + q); NaN for NaN.
//   times_power(p, k)   p 2^k for 0.5 <= p < 2 and a whole number k <= 2, rounded once; 0 if it rounds to 0.
//   negate, abs, if_equal(a, b, x, y), if_less(a, b, x, y), if_finite(a, x, y)
//   at_least(x, least)  The larger of the two; NaN if x is NaN.
//   all_equal(a, b)     Whether a == b in all lanes.
//
// Softkern's Triton kernels have the same formulas under the same names: softkern/triton/formulas.py.
#pragma once

#include "exp.h"
#include "stats_constants.h"

namespace softkern {
namespace {

/// m, or 0 if it is not finite: such a row has no finite result, so its terms must be defined, but not
/// correct.
template <class S>
SK_INLINE typename S::Reg finite(const typename S::Reg& m) {
  return S::if_finite(m, m, S::broadcast(0));
}

/// The number that is subtracted from the logits of a row before exp, for a finite maximum. From kDirect on,
/// logits are so coarse that x - m is exact for every term that counts.
template <class S>
SK_INLINE typename S::Reg origin_of(const typename S::Reg& m) {
  return S::if_less(S::abs(m), S::broadcast(kDirect), S::broadcast(0), m);
}

/// N of a finite maximum.
template <class S>
SK_INLINE typename S::Reg power_of(const typename S::Reg& m) {
  return S::sub(exp_power<S>(S::sub(m, origin_of<S>(m))),
                S::broadcast(ExpRange<typename S::Number>::kRounder));
}

/// e of the maximum; NaN if the maximum is infinite: inf - inf makes the whole row NaN, as in torch.
template <class S>
SK_INLINE typename S::Reg top_term(const typename S::Reg& m) {
  const auto held = finite<S>(m);
  const auto term = exp_remainder<S>(S::sub(held, origin_of<S>(held)), power_of<S>(held));
  return S::if_finite(m, term, S::broadcast(static_cast<typename S::Number>(__builtin_nan(""))));
}

/// The sum of all e_c; e_c / total = exp(x_c - m) / d.
template <class S>
SK_INLINE typename S::Reg total(const typename S::Reg& ties, const typename S::Reg& top,
                                const typename S::Reg& rest) {
  return S::count_add(ties, top, rest);
}

/// d - 1
template <class S>
SK_INLINE typename S::Reg d_less_one(const typename S::Reg& ties, const typename S::Reg& top,
                                     const typename S::Reg& rest) {
  return S::add(S::sub(ties, S::broadcast(1)), S::div(rest, top));
}

template <class S>
SK_INLINE typename S::Reg log_d(const typename S::Reg& ties, const typename S::Reg& top,
                                const typename S::Reg& rest) {
  return S::log_one_plus(d_less_one<S>(ties, top, rest));
}

/// The factor that converts terms of the maximum `from` to terms of the maximum `to` > `from`: at most about
/// 2, and 0 if `from` is infinite.
template <class S>
SK_INLINE typename S::Reg unit_ratio(const typename S::Reg& from, const typename S::Reg& to) {
  using A = typename S::Number;
  const auto held_from = finite<S>(from), held_to = finite<S>(to);
  const auto apart = S::at_least(S::sub(origin_of<S>(held_from), origin_of<S>(held_to)),
                                 S::broadcast(static_cast<A>(-kMostApart)));
  const auto n = S::sub(exp_power<S>(apart), S::broadcast(ExpRange<A>::kRounder));
  const auto k = S::sub(n, S::sub(power_of<S>(held_to), power_of<S>(held_from)));
  return S::if_finite(from, S::times_power(exp_remainder<S>(apart, n), k), S::broadcast(0));
}

/// Converts the ties and the rest of a part with the maximum m to the maximum `to` >= m of a larger part.
template <class S>
SK_INLINE void move_to(const typename S::Reg& to, const typename S::Reg& m, typename S::Reg& ties,
                       typename S::Reg& rest) {
  if (S::all_equal(m, to)) return;
  const auto zero = S::broadcast(0);
  const auto all = S::if_finite(m, total<S>(ties, top_term<S>(m), rest), rest);
  rest = S::if_equal(m, to, rest, S::mul(unit_ratio<S>(m, to), all));
  ties = S::if_equal(m, to, ties, zero);
}

}  // namespace
}  // namespace softkern
