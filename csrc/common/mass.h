// SPDX-License-Identifier: Apache-2.0
// a_c, the target mass of class c, with label_smoothing s, weights w (1 if not given) and C classes:
//   class index y:        a_c = (1 - s) w_y [c = y] + s/C w_c     the first part hot, the second spread
//   class probabilities:  a_c = w_c ((1 - s) t_c + s/C)           all of it spread
// S is the trait that computes (stats.h).
#pragma once

#include "inline.h"
#include "options.h"
#include "stats.h"

namespace softkern {
namespace {

/// The options of a call as numbers of the compute type. Kernels carry all of them.
template <class A>
struct MassNumbers {
  A keep;   // 1 - s
  A share;  // s/C
};
template <class A>
inline MassNumbers<A> mass_numbers(const CrossEntropyOptions& options, int64_t classes) {
  const double s = options.label_smoothing;
  return {static_cast<A>(1 - s), static_cast<A>(s / static_cast<double>(classes))};
}

/// Whether several classes of a row have mass.
inline bool has_spread_mass(const CrossEntropyOptions& options, bool probabilities) {
  return probabilities || options.label_smoothing != 0;
}

/// The mass of a class, with its weight.
template <class S>
SK_INLINE typename S::Reg weighted(const typename S::Reg& mass, const typename S::Reg& weight) {
  return S::mul(mass, weight);
}

/// The hot part of class y, and the spread part of every class, both without weights.
template <class S>
SK_INLINE typename S::Reg hot_mass(const MassNumbers<typename S::Number>& numbers) {
  return S::broadcast(numbers.keep);
}
template <class S>
SK_INLINE typename S::Reg uniform_mass(const MassNumbers<typename S::Number>& numbers) {
  return S::broadcast(numbers.share);
}
/// The mass of a class of probability t, without its weight.
template <class S>
SK_INLINE typename S::Reg probability_mass(const MassNumbers<typename S::Number>& numbers,
                                           const typename S::Reg& t) {
  return S::fma(t, S::broadcast(numbers.keep), S::broadcast(numbers.share));
}

/// Converts `below`, the sum_c a_c (m - x_c) of a part of a row, from the maximum m of the part to the
/// maximum `to` of a larger part. 0 stands for an infinite maximum.
template <class S>
SK_INLINE typename S::Reg below_moved(const typename S::Reg& to, const typename S::Reg& m,
                                      const typename S::Reg& masses, const typename S::Reg& below) {
  return S::fma(masses, S::sub(finite<S>(to), finite<S>(m)), below);
}

}  // namespace
}  // namespace softkern
