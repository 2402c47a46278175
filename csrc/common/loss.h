// SPDX-License-Identifier: Apache-2.0
// a_c is the target mass of class c (mass.h), A = sum_c a_c, and m and d are the statistics of the row
// (stats.h):
//   loss  = sum_c a_c ((m - x_c) + log d)
//   dx_c  = g (A exp(x_c - m) / d - a_c)
// m and d are kept apart: a rounded m + log d would lose the loss of logits that share a large offset. The
// mass of the hot class is kept apart from the spread mass. `masses` is the sum of the spread a_c over the
// classes, and `below` that of the spread a_c (m - x_c). S is the trait that computes (stats.h).
#pragma once

#include "inline.h"

namespace softkern {
namespace {

/// The part of the loss from the hot class; below_x = m - x_y.
template <class S>
SK_INLINE typename S::Reg hot_loss(const typename S::Reg& mass, const typename S::Reg& below_x,
                                   const typename S::Reg& log_d) {
  return S::mul(mass, S::add(below_x, log_d));
}
/// The part of the loss from the spread mass.
template <class S>
SK_INLINE typename S::Reg spread_loss(const typename S::Reg& masses, const typename S::Reg& below,
                                      const typename S::Reg& log_d) {
  return S::mul_add(masses, log_d, below);
}

/// g A / d, the factor of the terms in the gradient. divisor: S::divisor(total).
template <class S, class Divisor>
SK_INLINE typename S::Reg gradient_scale(const typename S::Reg& factor, const typename S::Reg& hot_mass,
                                         const typename S::Reg& masses, const Divisor& divisor) {
  return S::over(S::mul(factor, S::add(hot_mass, masses)), divisor);
}

/// The gradient of the hot class without its spread mass, for its logit x and its term e. These have the
/// compute type: p - 1 of a p that was rounded to 16 bits is off by up to 100 % for confident rows. If p is
/// close to 1, even the compute type loses p - 1. So p - 1 is computed from the other classes if the hot
/// class is the only maximum.
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

/// The gradient of a class with its spread mass; dx is the gradient without it.
template <class S>
SK_INLINE typename S::Reg less_mass(const typename S::Reg& dx, const typename S::Reg& mass,
                                    const typename S::Reg& minus_factor) {
  return S::mul_add(mass, minus_factor, dx);
}

}  // namespace
}  // namespace softkern
