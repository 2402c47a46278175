// SPDX-License-Identifier: Apache-2.0
// The statistics of a row, or of a thread's part of it. common/stats.h has the formulas and the contract.
#pragma once

#include "../common/mass.h"
#include "numbers.cuh"

namespace softkern::cuda {
namespace {

template <class A>
struct Stats {
  using L = Lane<A>;
  A m = -INFINITY;
  A ties = 0;
  A rest = 0;
  // For target mass a_c that several classes have: the sums of a_c and of a_c (m - x_c). An infinite m counts
  // as 0.
  A mass = 0;
  A below = 0;

  SK_INLINE A total() const { return softkern::total<L>(ties, top_term<L>(m), rest); }
  SK_INLINE A d_less_one() const { return softkern::d_less_one<L>(ties, top_term<L>(m), rest); }
  SK_INLINE A log_d() const { return softkern::log_d<L>(ties, top_term<L>(m), rest); }

  /// Converts the statistics of this part to the maximum of a larger part.
  SK_INLINE void move_to(A larger_m) {
    if (m == larger_m) return;
    softkern::move_to<L>(larger_m, m, ties, rest);
    below = below_moved<L>(larger_m, m, mass, below);
    m = larger_m;
  }
};

}  // namespace
}  // namespace softkern::cuda
