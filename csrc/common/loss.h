// SPDX-License-Identifier: Apache-2.0
// With a_c the target mass of class c (mass.h), A = sum_c a_c, m and d the row's statistics (stats.h):
//   loss  = sum_c a_c ((m - x_c) + log d)
//   dx_c  = g (A exp(x_c - m) / d - a_c)
// m and d stay apart: m + log d, rounded, would lose the loss of logits that share a large offset. The hot
// class's part of the mass is apart from the spread part, whose sums over the classes are `masses`, of a_c,
// and `below`, of a_c (m - x_c). S is what computes (stats.h).
#pragma once

#include "inline.h"

namespace softkern {
namespace {

/// The hot class's part of the loss; below_x = m - x_y.
template <class S>
SK_INLINE typename S::Reg hot_loss(const typename S::Reg& mass, const typename S::Reg& below_x,
                                   const typename S::Reg& log_d) {
  return S::mul(mass, S::add(below_x, log_d));
}
/// And what the spread mass adds to it.
template <class S>
SK_INLINE typename S::Reg spread_loss(const typename S::Reg& masses, const typename S::Reg& below,
                                      const typename S::Reg& log_d) {
  return S::mul_add(masses, log_d, below);
}

/// g A / d: what terms are multiplied by. divisor: S::divisor(total).
template <class S, class Divisor>
SK_INLINE typename S::Reg gradient_scale(const typename S::Reg& factor, const typename S::Reg& hot_mass,
                                         const typename S::Reg& masses, const Divisor& divisor) {
  return S::over(S::mul(factor, S::add(hot_mass, masses)), divisor);
}

/// The hot class's gradient but for its spread mass, of its logit x and term e. From numbers of the compute
/// type: p - 1 of a p already rounded to 16 bits is off by up to 100 % for confident rows. Where p is close
/// to 1 even the compute type loses p - 1, and the other classes give it.
template <class S, class Divisor>
SK_INLINE typename S::Reg hot_gradient(const typename S::Reg& factor, const typename S::Reg& hot_mass,
                                       const typename S::Reg& masses, const typename S::Reg& x,
                                       const typename S::Reg& e, const typename S::Reg& m,
                                       const typename S::Reg& ties, const typename S::Reg& rest,
                                       const Divisor& divisor) {
  const auto one = S::broadcast(1);
  const auto p = S::over(e, divisor);
  const auto ties_of_x = S::if_equal(x, m, ties, S::broadcast(0));
  const auto less_one = S::if_equal(ties_of_x, one, S::negate(S::over(rest, divisor)), S::sub(p, one));
  return S::mul(factor, S::mul_add(hot_mass, less_one, S::mul(masses, p)));
}

/// A class's gradient with its spread mass.
template <class S>
SK_INLINE typename S::Reg less_mass(const typename S::Reg& dx, const typename S::Reg& mass,
                                    const typename S::Reg& minus_factor) {
  return S::mul_add(mass, minus_factor, dx);
}

}  // namespace
}  // namespace softkern
