// SPDX-License-Identifier: Apache-2.0
// The statistics of a row for row_losses: of its transformed logits z (common/row_losses.h), with the sum E
// for the entropy, and the class that argmax returns.
#pragma once

#include <limits>

#include "../common/row_losses.h"
#include "mass.cuh"

namespace softkern::cuda {
namespace {

/// What a kernel of row_losses computes. The more it can do, the more registers it needs.
enum class Form {
  kPlain,    // z = x, at most one class index per row, no entropy
  kGeneral,  // at most one class index per row
  kSpread,   // everything
};

template <class A>
struct RowStats : Stats<A> {
  using L = Lane<A>;
  A terms_below = 0;  // E

  /// As Stats::move_to. Without kEntropy, E is not kept.
  template <bool kEntropy>
  SK_INLINE void move_to(A to) {
    const A m = this->m;
    if (m == to) return;
    if (kEntropy) {
      const A all = is_finite(m) ? this->total() : A(0);
      terms_below = terms_below_moved<L>(to, m, all, unit_ratio<L>(m, to), terms_below);
    }
    Stats<A>::move_to(to);
  }
};

/// The class that argmax returns, of the classes of one thread: the first NaN, or else the first class with
/// the maximum.
template <class Index>
struct First {
  static constexpr Index kNone = std::numeric_limits<Index>::max();
  Index nan = kNone, largest = kNone;

  template <class A, int V>
  SK_INLINE void look(const A (&z)[V], A m, Index c) {
    SK_UNROLL
    for (int i = 0; i < V; ++i) {
      if (z[i] < m) continue;
      const Index at = c + i;
      if (z[i] == m) {
        if (at < largest) largest = at;
      } else {
        if (at < nan) nan = at;
      }
    }
  }

  /// The class of the whole row. Maxima are exact for whole numbers up to 2^24. A row that threads keep has
  /// fewer than 2^22 classes; the classes of other rows are found in two parts.
  template <class A, class Team>
  SK_INLINE Index of_row(Team& team) const {
    constexpr int kBits = 22;
    constexpr bool kTwoParts = sizeof(Index) > sizeof(int);
    // The maxima come after all NaNs.
    constexpr Index kAfter = Index(1) << (kTwoParts ? 2 * kBits : kBits);
    const auto least = [&](Index i) { return static_cast<Index>(-team.max_of(static_cast<A>(-i))); };
    Index key = nan != kNone ? nan : largest != kNone ? largest | kAfter : 2 * kAfter;
    if constexpr (kTwoParts) {
      const Index high = least(key >> kBits), all_bits = (Index(1) << kBits) - 1;
      const Index low = least(key >> kBits == high ? key & all_bits : all_bits);
      key = high << kBits | low;
    } else {
      key = least(key);
    }
    return key & (kAfter - 1);
  }
};

template <class A, int V>
SK_INLINE void transform(const LogitNumbers<A>& numbers, A (&v)[V]) {
  SK_UNROLL
  for (int i = 0; i < V; ++i) v[i] = transformed<Lane<A>>(numbers, v[i]);
}
/// Makes z of a chunk of a row whose maximum is known. A row that keeps changes holds z already.
template <Form kForm, class Row, class A, int V>
SK_INLINE void to_z(const LogitNumbers<A>& numbers, A (&v)[V]) {
  if constexpr (kForm != Form::kPlain && !Row::kHoldsTerms) transform(numbers, v);
}

/// Adds the statistics of a chunk's classes, relative to the maximum s.m, to s; `rest` and `terms_below` get
/// those of the same name. With kTerms, v holds the terms afterwards.
template <Form kForm, bool kTerms, class A, int V, class Mass>
SK_INLINE void add_z(RowStats<A>& s, A& rest, A& terms_below, A (&v)[V], int64_t c, const Terms<A>& terms,
                     A held, const Mass& mass) {
  if constexpr (kForm == Form::kPlain) {
    add_chunk<kTerms, true>(s, rest, v, c, terms, held, mass);
  } else {
    A e[V];
    SK_UNROLL
    for (int i = 0; i < V; ++i) e[i] = v[i];
    add_chunk<true, true>(s, rest, e, c, terms, held, mass);
    SK_UNROLL
    for (int i = 0; i < V; ++i) terms_below += term_below<Lane<A>>(e[i], held - v[i]);
  }
}

/// 1 max and 2 sum-exp, without the sums over the team. The terms have the precision of the compute type,
/// also for 16-bit elements, since the results have. Afterwards, a row that keeps changes holds its terms
/// (kPlain) or z. hot_z: as `logit` of statistics().
template <Form kForm, class T, class Team, class Row, class Mass, class Index>
SK_INLINE RowStats<Compute<T>> thread_statistics(Team& team, Row& row, const Mass& mass,
                                                 const LogitNumbers<Compute<T>>& numbers, Compute<T> hot_z,
                                                 bool wants_first, First<Index>& first) {
  using A = Compute<T>;
  constexpr bool kPlain = kForm == Form::kPlain;
  RowStats<A> s;
  if constexpr (Row::kKeeps) {
    A m = -INFINITY;
    if constexpr (kPlain) {
      m = row.max();
    } else {
      row.each([&](auto& v, auto) {
        transform(numbers, v);
        for (const A z : v) m = larger(m, z);
      });
    }
    s.m = team.max_of(larger(m, hot_z)) + A(0);  // as in statistics()
    if (wants_first) {
      row.each([&](auto& v, Index c) {
        to_z<kForm, Row>(numbers, v);
        first.look(v, s.m, c);
      });
    }
    const A held = finite(s.m);
    const Terms<A> terms(held);
    row.each([&](auto& v, Index c) {
      to_z<kForm, Row>(numbers, v);
      add_z<kForm, Row::kHoldsTerms>(s, s.rest, s.terms_below, v, c, terms, held, mass);
    });
  } else {
    row.each_block([&](auto& block, int64_t c) {
      constexpr int kChunks = sizeof(block) / sizeof(block[0]);
      A m = s.m;
      SK_UNROLL
      for (int j = 0; j < kChunks; ++j) {
        if constexpr (!kPlain) transform(numbers, block[j]);
        for (const A z : block[j]) m = larger(m, z);
      }
      if (wants_first) {
        if (m > s.m) first.largest = first.kNone;
        SK_UNROLL
        for (int j = 0; j < kChunks; ++j) first.look(block[j], m, c + j * row.step());
      }
      s.template move_to<!kPlain>(m + A(0));
      const A held = finite(s.m);
      const Terms<A> terms(held);
      A rest = 0, terms_below = 0;
      SK_UNROLL
      for (int j = 0; j < kChunks; ++j) {
        add_z<kForm, false>(s, rest, terms_below, block[j], c + j * row.step(), terms, held, mass);
      }
      s.rest += rest;
      s.terms_below += terms_below;
    });
    const A m = team.max_of(s.m);
    if (m > s.m) first.largest = first.kNone;
    s.template move_to<!kPlain>(m);
  }
  return s;
}

}  // namespace
}  // namespace softkern::cuda
