// SPDX-License-Identifier: Apache-2.0
// The arguments of row_losses as its kernels take them, and the targets of a row: none, one class index,
// several of them, or class probabilities (common/row_losses.h).
#pragma once

#include "row_stats.cuh"
#include "targets.cuh"

namespace softkern::cuda {
namespace {

template <class A>
struct Numbers {
  A *loss, *log_prob, *lse, *entropy;
};
template <class A>
Numbers<A> numbers_of(const RowNumbers& numbers) {
  return {static_cast<A*>(numbers.loss), static_cast<A*>(numbers.log_prob), static_cast<A*>(numbers.lse),
          static_cast<A*>(numbers.entropy)};
}
template <class A>
SK_INLINE A number_at(const A* numbers, int64_t i, A otherwise) {
  return numbers != nullptr ? numbers[i] : otherwise;
}

/// RowLossArgs in the form that kernels take.
template <class T>
struct RowLossCall {
  using A = Compute<T>;
  using L = Lane<A>;
  Rows logits;
  int64_t classes;
  IndexTarget target;
  int64_t per_row;
  const A* target_probs;
  Rows probabilities;
  const T* weight;
  const A* row_weight;
  MassNumbers<A> masses;
  LogitNumbers<A> logit;
  A z_loss;
  Numbers<A> results;
  int64_t* argmax;
  bool* correct;
  Rows grad;
  A constant_factor;
  const A* factor;
  Numbers<A> upstream;
  A* hot_z;

  SK_INLINE bool wants_first() const { return argmax != nullptr || correct != nullptr; }
  SK_INLINE A weight_of(int64_t y) const { return weight != nullptr ? widen(weight[y]) : A(1); }
  /// The hot mass of class index number i of all indices.
  SK_INLINE A hot_mass_at(int64_t i) const {
    if (target_probs == nullptr) return 0;
    const A mass = hot_mass<L>(masses) * target_probs[i];
    return weight != nullptr ? weighted<L>(mass, weight_of(target.of(i))) : mass;
  }
};

/// The target of a row. `hot` is its only class index; several are read again where they are needed.
template <class T, Form kForm, class Index>
struct RowTarget {
  using A = Compute<T>;
  bool counts;  // the row exists and is not ignored
  Index hot = -1;
  A hot_mass = 0, hot_z = 0;
  A weight = 1;
  typename MassOf<T, kForm == Form::kSpread>::type mass;
};

template <class T, Form kForm, class Index>
SK_INLINE RowTarget<T, kForm, Index> target_of(const Grid& grid, const RowLossCall<T>& call, int64_t row) {
  using A = Compute<T>;
  RowTarget<T, kForm, Index> result;
  result.counts = row < grid.rows;
  if (result.counts && call.target.at != nullptr && call.per_row == 0) {
    const int64_t y = call.target.of(row);
    result.counts = y != call.target.ignore_index;
    if (result.counts) {
      // Stops before anything is read for a class that is out of range.
      stop_unless(y >= 0 && y < grid.shape.classes, kOutOfBounds);
      const T* x = row_of<const T>(call.logits, row, grid.shape.inner);
      A z[1] = {widen(x[y * call.logits.class_stride])};
      if constexpr (kForm != Form::kPlain) transform(call.logit, z);
      result.hot = static_cast<Index>(y);
      result.hot_z = z[0];
      result.weight = call.weight_of(y);
      result.hot_mass = weighted<Lane<A>>(hot_mass<Lane<A>>(call.masses), result.weight);
    }
  }
  if constexpr (kForm == Form::kSpread) {
    Span<const T> t{nullptr, 0, 0};
    if (call.probabilities.data != nullptr) t = span_of<const T>(call.probabilities, grid, row);
    const bool spread = result.counts && (t.at != nullptr || call.masses.share != 0);
    result.mass = {t, call.weight, call.masses, spread ? grid.shape.classes : 0};
  }
  return result;
}

/// What several class indices of a row add up to.
template <class A>
struct HotSums {
  A mass = 0, below = 0;  // of a_c and of a_c (m - z_c)
  A log_prob = 0;         // upstream gradients
};

/// The part of the sums from the indices of one thread, which also checks them. Stores their z: in place, the
/// gradient takes the place of the logits. The team's next barrier comes before both are used.
template <class T, class Team>
SK_INLINE HotSums<Compute<T>> sum_indices(const Team& team, const Grid& grid, const RowLossCall<T>& call,
                                          int64_t row, Compute<T> m) {
  HotSums<Compute<T>> sums;
  if (row >= grid.rows) return sums;
  const T* x = row_of<const T>(call.logits, row, grid.shape.inner);
  for (int64_t k = team.rank(); k < call.per_row; k += team.size()) {
    const int64_t i = row * call.per_row + k, y = call.target.of(i);
    stop_unless(y >= 0 && y < grid.shape.classes, kOutOfBounds);
    Compute<T> z[1] = {widen(x[y * call.logits.class_stride])};
    transform(call.logit, z);
    call.hot_z[i] = z[0];
    const Compute<T> mass = call.hot_mass_at(i);
    sums.mass += mass;
    sums.below = fused(mass, finite(m) - z[0], sums.below);
    sums.log_prob += number_at<Compute<T>>(call.upstream.log_prob, i, 0);
  }
  return sums;
}

}  // namespace
}  // namespace softkern::cuda
