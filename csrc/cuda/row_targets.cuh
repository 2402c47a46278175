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

/// Where the numbers of these logits go.
template <class A>
struct Parts {
  A* at;
  int64_t step;
  bool entropy;  // whether E is wanted
};

/// RowLossArgs in the form that kernels take.
template <class T>
struct RowLossCall {
  using A = Compute<T>;
  using L = Lane<A>;
  Rows logits;
  int64_t classes;
  int64_t first, row_classes;  // the first class of the logits; the valid classes of whole rows
  IndexTarget target;
  int64_t per_row;
  const A* target_probs;
  Rows probabilities;
  const T* weight;
  const A* row_weight;
  MassNumbers<A> masses;
  LogitNumbers<A> logit;
  A z_loss;
  Parts<A> parts;
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
  /// The weights of the classes of the logits.
  SK_INLINE const T* own_weights() const { return weight != nullptr ? weight + first : nullptr; }
  /// Stops before anything is read for an index that is out of range.
  SK_INLINE void check(int64_t y) const { stop_unless(y >= 0 && y < row_classes, kOutOfBounds); }
  /// The class of an index among the logits; -1 if it is not among them.
  SK_INLINE int64_t own_class(int64_t y) const {
    const int64_t own = y - first;
    return own >= 0 && own < classes ? own : -1;
  }
  SK_INLINE void add_squared_lse(A& loss, A weight_of_target, A lse) const {
    if (z_loss != 0) loss += squared_lse<L>(z_loss, weight_of_target, lse);
  }
  /// The hot mass of class index number i of all indices.
  SK_INLINE A hot_mass_at(int64_t i) const {
    if (target_probs == nullptr) return 0;
    const A mass = hot_mass<L>(masses) * target_probs[i];
    return weight != nullptr ? weighted<L>(mass, weight_of(target.of(i))) : mass;
  }
};

template <class T>
RowLossCall<T> call_of(const RowLossArgs& args) {
  using A = Compute<T>;
  return {args.logits,
          args.classes,
          args.first,
          args.options.valid_classes,
          {args.target, args.target_type, args.options.ignore_index},
          args.per_row,
          static_cast<const A*>(args.target_probs),
          args.probabilities,
          static_cast<const T*>(args.weight),
          static_cast<const A*>(args.row_weight),
          mass_numbers<A>(args.options, args.options.valid_classes),
          logit_numbers<A>(args.options),
          static_cast<A>(args.options.z_loss),
          {static_cast<A*>(args.parts.at), args.parts.step, (args.options.outputs & kEntropy) != 0},
          numbers_of<A>(args.results),
          args.argmax,
          args.correct,
          args.grad,
          static_cast<A>(args.grad_factor),
          static_cast<const A*>(args.factor),
          numbers_of<A>(args.upstream),
          static_cast<A*>(args.hot_z)};
}

inline Form form_of(const RowLossArgs& args) {
  const bool in_parts = args.parts.at != nullptr && (args.options.outputs & kEntropy) != 0;
  const bool entropy = args.results.entropy != nullptr || args.upstream.entropy != nullptr || in_parts;
  if (args.per_row > 0 || has_spread_mass(args.options, args.probabilities.data != nullptr))
    return Form::kSpread;
  return entropy || transforms_logits(args.options) ? Form::kGeneral : Form::kPlain;
}

/// The target of a row. `hot` is its only class index, or -1 if that is not among the logits; several are
/// read again where they are needed.
template <class T, Form kForm, class Index>
struct RowTarget {
  using A = Compute<T>;
  bool counts;  // the row exists and is not ignored
  Index hot = -1;
  A hot_mass = 0, hot_z = 0;
  A weight = 1;
  typename MassOf<T, kForm == Form::kSpread ? Spread::kAny : Spread::kNone>::type mass;
};

/// The transformed logit of a class of a row.
template <Form kForm, class T>
SK_INLINE Compute<T> z_of(const Grid& grid, const RowLossCall<T>& call, int64_t row, int64_t y) {
  const T* x = row_of<const T>(call.logits, row, grid.shape.inner);
  Compute<T> z[1] = {widen(x[y * call.logits.class_stride])};
  if constexpr (kForm != Form::kPlain) transform(call.logit, z);
  return z[0];
}

/// z(y) returns the transformed logit of the class y of the logits.
template <class T, Form kForm, class Index, class Z>
SK_INLINE RowTarget<T, kForm, Index> target_of(const Grid& grid, const RowLossCall<T>& call, int64_t row,
                                               Z z) {
  using A = Compute<T>;
  RowTarget<T, kForm, Index> result;
  result.counts = row < grid.rows;
  if (result.counts && call.target.at != nullptr && call.per_row == 0) {
    const int64_t y = call.target.of(row);
    result.counts = y != call.target.ignore_index;
    if (result.counts) {
      call.check(y);
      result.hot = static_cast<Index>(call.own_class(y));
      if (result.hot >= 0) result.hot_z = z(result.hot);
      result.weight = call.weight_of(y);
      result.hot_mass = weighted<Lane<A>>(hot_mass<Lane<A>>(call.masses), result.weight);
    }
  }
  if constexpr (kForm == Form::kSpread) {
    Span<const T> t{nullptr, 0, 0};
    if (call.probabilities.data != nullptr) t = span_of<const T>(call.probabilities, grid, row);
    const bool spread = result.counts && (t.at != nullptr || call.masses.share != 0);
    result.mass = {t, call.own_weights(), call.masses, spread ? grid.shape.classes : 0};
  }
  return result;
}

/// The same, with z of the logits in memory.
template <class T, Form kForm, class Index>
SK_INLINE RowTarget<T, kForm, Index> target_of(const Grid& grid, const RowLossCall<T>& call, int64_t row) {
  return target_of<T, kForm, Index>(grid, call, row,
                                    [&](int64_t y) { return z_of<kForm>(grid, call, row, y); });
}

/// below, the sum of the spread a_c (m - z_c), with those of several class indices.
template <class T, class A>
SK_INLINE A with_indices(const RowLossCall<T>& call, int64_t row, A m, A below) {
  for (int64_t i = row * call.per_row; i < (row + 1) * call.per_row; ++i) {
    below = fused(call.hot_mass_at(i), finite(m) - call.hot_z[i], below);
  }
  return below;
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
  for (int64_t k = team.rank(); k < call.per_row; k += team.size()) {
    const int64_t i = row * call.per_row + k, y = call.target.of(i);
    call.check(y);
    const int64_t own = call.own_class(y);
    const Compute<T> z = own >= 0 ? z_of<Form::kSpread>(grid, call, row, own) : Compute<T>(0);
    call.hot_z[i] = z;
    const Compute<T> mass = call.hot_mass_at(i);
    sums.mass += mass;
    // The numbers of a part have the spread mass alone.
    if (call.parts.at == nullptr) sums.below = fused(mass, finite(m) - z, sums.below);
    sums.log_prob += number_at<Compute<T>>(call.upstream.log_prob, i, 0);
  }
  return sums;
}

}  // namespace
}  // namespace softkern::cuda
