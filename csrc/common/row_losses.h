// SPDX-License-Identifier: Apache-2.0
// Losses and statistics of rows, with softkern's own options. The logits x become z (transformed), and m, d
// are the statistics of z (stats.h). Names are those of loss.h and mass.h; E = sum_c e_c (m - z_c), where e_c
// are the terms, and total = sum_c e_c. r is the row's weight, w the weight of its target class (1 for class
// probabilities), zeta the option z_loss:
//   lse       = m + log d
//   log_prob  = -((m - z_y) + log d)
//   entropy   = log d + E / total                      all of its terms are >= 0: nothing cancels
//   loss      = r (sum_c a_c ((m - z_c) + log d) + zeta w lse^2)
// For the upstream gradients g of the loss, g_k of the log-probability of class y_k, g_l of lse and g_h of
// the entropy, with p_c = e_c / total:
//   dz_c = p_c (alpha + g_h ((m - z_c) - E / total)) - g r a_c + sum_k g_k [c = y_k]
//   alpha = g r (A + 2 zeta w lse) + g_l - sum_k g_k
// The hot part of a class is  h = g r hot_mass - g_k,  and dz of this class is computed from p - 1:
//   dz_y = h (p_y - 1) + (alpha - h + g_h ((m - z_y) - E / total)) p_y - (its spread mass)
// S is the trait that computes (stats.h).
#pragma once

#include "inline.h"
#include "options.h"
#include "stats.h"
#include "tanh.h"

namespace softkern {
namespace {

/// z = outer * tanh(inner * x) if capped, otherwise outer * x.
template <class A>
struct LogitNumbers {
  A inner, outer;
  bool capped;
  A inverse;  // 1 / outer
  A slope;    // dz/dx at x = 0
};
template <class A>
inline LogitNumbers<A> logit_numbers(const RowOptions& options) {
  const double slope = options.logit_scale / options.temperature;
  if (options.softcap == 0) return {A(1), static_cast<A>(slope), false, A(1), static_cast<A>(slope)};
  return {static_cast<A>(options.logit_scale / options.softcap),
          static_cast<A>(options.softcap / options.temperature), true,
          static_cast<A>(options.temperature / options.softcap), static_cast<A>(slope)};
}

/// Whether z differs from x.
inline bool transforms_logits(const RowOptions& options) {
  return options.softcap != 0 || options.logit_scale != options.temperature;
}

/// z; a logit of -inf stays -inf, so that padding stays padding.
template <class S>
SK_INLINE typename S::Reg transformed(const LogitNumbers<typename S::Number>& numbers,
                                      const typename S::Reg& x) {
  const auto lowest = S::broadcast(-__builtin_inf());
  const auto outer = S::broadcast(numbers.outer);
  if (!numbers.capped) return S::if_equal(x, lowest, lowest, S::mul(outer, x));
  const auto t = tanh<S>(S::mul(S::broadcast(numbers.inner), x));
  return S::if_equal(x, lowest, lowest, S::mul(outer, t));
}

/// dz/dx at a z: slope (1 - tanh^2), from the capped logit; 0 at -inf.
template <class S>
SK_INLINE typename S::Reg logit_slope(const LogitNumbers<typename S::Number>& numbers,
                                      const typename S::Reg& z) {
  const auto slope = S::broadcast(numbers.slope);
  if (!numbers.capped) return slope;
  const auto one = S::broadcast(1);
  const auto t = S::mul(z, S::broadcast(numbers.inverse));
  const auto product = S::mul(slope, S::mul(S::sub(one, t), S::add(one, t)));
  return S::if_equal(z, S::broadcast(-__builtin_inf()), S::broadcast(0), product);
}

/// e (m - z), and 0 for e = 0, where z may be -inf.
template <class S>
SK_INLINE typename S::Reg term_below(const typename S::Reg& e, const typename S::Reg& below) {
  const auto zero = S::broadcast(0);
  return S::if_equal(e, zero, zero, S::mul(e, below));
}
/// Converts E of a part from the maximum m to `to` >= m of a larger part. all: the total of the part; ratio:
/// unit_ratio<S>(m, to), which is 0 for an infinite m.
template <class S>
SK_INLINE typename S::Reg terms_below_moved(const typename S::Reg& to, const typename S::Reg& m,
                                            const typename S::Reg& all, const typename S::Reg& ratio,
                                            const typename S::Reg& below) {
  return S::mul(ratio, S::fma(all, S::sub(finite<S>(to), finite<S>(m)), below));
}

template <class S>
SK_INLINE typename S::Reg lse_of(const typename S::Reg& m, const typename S::Reg& log_d) {
  return S::add(m, log_d);
}
template <class S>
SK_INLINE typename S::Reg log_prob_of(const typename S::Reg& below_z, const typename S::Reg& log_d) {
  return S::negate(S::add(below_z, log_d));
}
/// mean_below: E / total
template <class S>
SK_INLINE typename S::Reg entropy_of(const typename S::Reg& log_d, const typename S::Reg& mean_below) {
  return S::add(log_d, mean_below);
}
/// zeta w lse^2
template <class S>
SK_INLINE typename S::Reg squared_lse(const typename S::Reg& zeta, const typename S::Reg& weight,
                                      const typename S::Reg& lse) {
  return S::mul(S::mul(S::mul(zeta, weight), lse), lse);
}

/// alpha without the hot parts: g r (masses + 2 zeta w lse) + g_l. g: the upstream gradient of the loss times
/// r.
template <class S>
SK_INLINE typename S::Reg common_pull(const typename S::Reg& g, const typename S::Reg& masses,
                                      const typename S::Reg& zeta, const typename S::Reg& weight,
                                      const typename S::Reg& lse, const typename S::Reg& g_lse) {
  const auto of_lse = S::mul(S::mul(S::broadcast(2), S::mul(zeta, weight)), lse);
  return S::add(S::mul(g, S::add(masses, of_lse)), g_lse);
}
/// The factor of a term in dz: (pull + slope (m - z)) / total is the same for all classes but for m - z.
/// pull: alpha - g_h E / total.
template <class S>
SK_INLINE typename S::Reg term_pull(const typename S::Reg& scale, const typename S::Reg& slope,
                                    const typename S::Reg& e, const typename S::Reg& below) {
  return S::fma(e, scale, S::mul(slope, term_below<S>(e, below)));
}

}  // namespace
}  // namespace softkern
