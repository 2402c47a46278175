// SPDX-License-Identifier: Apache-2.0
// The statistics of a row, m = max_c x_c and d = sum_c exp(x_c - m), in the form that keeps their digits
// (cpu/kernels/row_stats.h): terms e_c = exp(x_c) 2^-N with N = round(m / ln 2), those of the maximum counted
// (ties), the others added up (rest): d = ties + rest / e_max. Those of parts of a row are merged by powers
// of two.
#pragma once

#include "numbers.cuh"

namespace softkern::cuda {
namespace {

template <class A>
struct Stats {
  A m = -INFINITY;
  A ties = 0;
  A rest = 0;
  // Of the target mass a_c that several classes have: sum of a_c, and of a_c (m - x_c); 0 in the place of an
  // infinite m.
  A mass = 0;
  A below = 0;

  /// e of the maximum; NaN if that is infinite: inf - inf makes the whole row NaN, as in torch.
  SK_INLINE A top() const { return is_finite(m) ? Terms<A>(m).of(m) : static_cast<A>(NAN); }
  /// sum of e; e_c / total = exp(x_c - m) / d.
  SK_INLINE A total() const { return fused(ties, top(), rest); }
  SK_INLINE A d_less_one() const { return (ties - 1) + divide(rest, top()); }
  SK_INLINE A log_d() const { return log_one_plus_of(d_less_one()); }

  /// This part in terms of the maximum of more than the part.
  SK_INLINE void move_to(A larger_m) {
    if (m == larger_m) return;
    const A all = is_finite(m) ? fused(ties, Terms<A>(m).of(m), rest) : rest;
    rest = ratio(m, larger_m) * all;
    ties = 0;
    below = fused(mass, finite(larger_m) - finite(m), below);
    m = larger_m;
  }

 private:
  /// What terms of the maximum `from` are multiplied by to be terms of the maximum `to` > `from`.
  static SK_INLINE A ratio(A from, A to) {
    using L = Lane<A>;
    if (!is_finite(from)) return 0;
    const A held = finite(to), from_origin = origin_of(from), to_origin = origin_of(held);
    // Below, the ratio is too small to count beside a maximum's term.
    const A apart = at_least(from_origin - to_origin, A(-1400));
    const A rounder = ExpRange<A>::kRounder;
    const A n = exp_power<L>(apart) - rounder;
    const A from_power = exp_power<L>(from - from_origin) - rounder;
    const A to_power = exp_power<L>(held - to_origin) - rounder;
    const A k = at_least(n - (to_power - from_power), A(1 - Format<A>::kBias - Format<A>::kDown));
    return scale_by_power(exp_remainder<L>(apart, n), static_cast<int>(k));
  }
};

}  // namespace
}  // namespace softkern::cuda
