// SPDX-License-Identifier: Apache-2.0
// The results of rows of row_losses from their numbers.
#pragma once

#include "row_losses.h"

namespace softkern::cpu {
namespace {

/// The results of this many rows are computed together: a logarithm after each row would delay the next row.
constexpr int kResultRows = 8;

template <class T>
class RowResults {
  using A = Compute<T>;
  using L = OneLane<A>;

 public:
  explicit RowResults(const RowLossArgs& a)
      : a_(a),
        weight_(static_cast<const T*>(a.weight)),
        mass_(mass_numbers<A>(a.options, a.row_valid)),
        spread_(has_spread_row(a)) {}

  static bool has_spread_row(const RowLossArgs& a) {
    const bool massive = a.target_probs != nullptr || a.per_row == 1;
    return a.probabilities.data != nullptr || (massive && a.options.label_smoothing != 0);
  }
  static const A* numbers(const void* x) { return static_cast<const A*>(x); }
  static void put(void* to, int64_t i, A v) {
    if (to != nullptr) static_cast<A*>(to)[i] = v;
  }
  static SK_INLINE void set_log(RowNumbers<A>& of, A log_d) {
    of.log_d = log_d;
    of.lse = lse_of<L>(of.stats.m, log_d);
  }

  const T* weight() const { return weight_; }
  /// The option z_loss.
  double zeta() const { return a_.options.z_loss; }
  const MassNumbers<A>& mass_numbers_of() const { return mass_; }
  const int64_t* indices(int64_t r) const { return a_.target + r * a_.per_row; }
  bool has_one_index() const { return a_.per_row == 1 && a_.target_probs == nullptr; }
  bool is_ignored(int64_t r) const { return has_one_index() && a_.target[r] == a_.options.ignore_index; }
  A weight_of(int64_t c) const { return weight_ == nullptr ? A(1) : widen(weight_[c]); }
  /// The hot mass of index k of row r.
  A mass_of(int64_t r, int64_t k) const {
    A mass = hot_mass<L>(mass_);
    if (a_.target_probs != nullptr) {
      mass *= numbers(a_.target_probs)[r * a_.per_row + k];
    } else if (a_.per_row > 1) {
      return 0;
    }
    return weight_ == nullptr ? mass : weighted<L>(mass, weight_of(indices(r)[k]));
  }
  /// w of z-loss.
  A own_weight(int64_t r) const { return has_one_index() ? weight_of(*indices(r)) : A(1); }

  bool wanted() const {
    return a_.loss != nullptr || a_.log_prob != nullptr || a_.lse != nullptr || a_.entropy != nullptr;
  }
  /// hot_z: the logits of the row's indices.
  SK_INLINE void put_row(int64_t r, const RowNumbers<A>& of, const A* hot_z) const {
    const A m = of.stats.m;
    if (a_.loss != nullptr) {
      A loss = 0;
      for (int64_t k = 0; k < a_.per_row; ++k) loss += hot_loss<L>(mass_of(r, k), m - hot_z[k], of.log_d);
      if (spread_) loss += spread_loss<L>(of.mass.of[0], of.mass.of[1], of.log_d);
      const A own_zeta = static_cast<A>(zeta());
      if (own_zeta != 0) loss += squared_lse<L>(own_zeta, own_weight(r), of.lse);
      put(a_.loss, r, a_.row_weight == nullptr ? loss : loss * numbers(a_.row_weight)[r]);
    }
    if (a_.log_prob != nullptr) {
      for (int64_t k = 0; k < a_.per_row; ++k) {
        put(a_.log_prob, r * a_.per_row + k, log_prob_of<L>(m - hot_z[k], of.log_d));
      }
    }
    put(a_.lse, r, of.lse);
    if (a_.entropy != nullptr) put(a_.entropy, r, entropy_of<L>(of.log_d, of.below / of.stats.sum()));
  }
  /// Ignored rows get exact zeros, whatever their logits.
  void put_ignored(int64_t r) const {
    put(a_.loss, r, 0);
    put(a_.log_prob, r, 0);
    put(a_.lse, r, 0);
    put(a_.entropy, r, 0);
  }
  /// Results of `count` rows, whose logarithms are computed together. Row k is row_of(k), and hot_of(k) are
  /// the logits of its indices.
  template <class RowOf, class HotOf>
  SK_INLINE void put_rows(int count, RowNumbers<A>* of, RowOf row_of, HotOf hot_of) const {
    double q[kResultRows];
    for (int k = 0; k < count; ++k) q[k] = of[k].stats.others();
    log_one_plus_of(q, count);
    for (int k = 0; k < count; ++k) {
      set_log(of[k], static_cast<A>(q[k]));
      put_row(row_of(k), of[k], hot_of(k));
    }
  }

 private:
  const RowLossArgs& a_;
  const T* const weight_;
  const MassNumbers<A> mass_;
  const bool spread_;
};

}  // namespace
}  // namespace softkern::cpu
