// SPDX-License-Identifier: Apache-2.0
// The numbers of some classes of a row (PartNumber in options.h), and how they are merged with those of other
// classes of the row. Numbers are in the order of PartNumber. S is the trait that computes (stats.h).
#pragma once

#include "mass.h"
#include "row_losses.h"

namespace softkern {
namespace {

/// The sum of a_c (m - z_c), converted to a larger maximum. Masked classes, whose maximum is -inf, are
/// infinitely far below a finite one, if they have mass. Without mass the sum stays what it is: 0 if no class
/// has a share, NaN if there are shares and they are 0, as 0 times infinity is NaN in torch.
template <class S>
SK_INLINE typename S::Reg mass_below_moved(const typename S::Reg& to, const typename S::Reg& m,
                                           const typename S::Reg& mass, const typename S::Reg& below) {
  const auto infinite =
      S::if_equal(mass, S::broadcast(0), below, S::mul(mass, S::broadcast(__builtin_inf())));
  return S::if_finite(m, below_moved<S>(to, m, mass, below), infinite);
}

/// Converts the numbers of a part to the maximum of a larger part.
template <class S>
SK_INLINE void move_part(const typename S::Reg& to, typename S::Reg (&p)[kPartNumbers]) {
  const auto m = p[kPartMax];
  if (S::all_equal(m, to)) return;
  const auto all = S::if_finite(m, total<S>(p[kPartTies], top_term<S>(m), p[kPartRest]), p[kPartRest]);
  const auto terms_below = terms_below_moved<S>(to, m, all, unit_ratio<S>(m, to), p[kPartTermsBelow]);
  const auto mass_below = mass_below_moved<S>(to, m, p[kPartMass], p[kPartMassBelow]);
  p[kPartTermsBelow] = S::if_equal(m, to, p[kPartTermsBelow], terms_below);
  p[kPartMassBelow] = S::if_equal(m, to, p[kPartMassBelow], mass_below);
  move_to<S>(to, m, p[kPartTies], p[kPartRest]);
  p[kPartMax] = to;
}

/// a = the numbers of the classes of both parts; b is changed too. Either order gives the same bits. A part
/// without classes, m = -inf and all else 0, changes nothing. At most one part has the class of the index,
/// and hot_z of the other is 0.
template <class S>
SK_INLINE void merge_part(typename S::Reg (&a)[kPartNumbers], typename S::Reg (&b)[kPartNumbers]) {
  const auto m = S::if_less(a[kPartMax], b[kPartMax], b[kPartMax], a[kPartMax]);
  move_part<S>(m, a);
  move_part<S>(m, b);
  for (int i = kPartMax + 1; i < kPartNumbers; ++i) a[i] = S::add(a[i], b[i]);
}

}  // namespace
}  // namespace softkern
