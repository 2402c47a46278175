// SPDX-License-Identifier: Apache-2.0
// The results of a row of row_losses, from the statistics of the whole row (common/row_losses.h).
#pragma once

#include "../common/loss.h"
#include "row_gradient.cuh"

namespace softkern::cuda {
namespace {

template <class T, class Target, class A>
SK_INLINE void write_parts(const RowLossCall<T>& call, const Target& target, const RowStats<A>& s,
                           int64_t row) {
  if (call.parts.at == nullptr) return;
  const A terms_below = call.parts.entropy ? s.terms_below : A(0);
  const A numbers[kPartNumbers] = {s.m, s.ties, s.rest, terms_below, s.mass, s.below, target.hot_z};
  SK_UNROLL
  for (int i = 0; i < kPartNumbers; ++i)
    call.parts.at[i * call.parts.step + row] = target.counts ? numbers[i] : A(0);
}

template <class T, Form kForm, class Target, class Team>
SK_INLINE void write_results(const Team& team, const RowLossCall<T>& call, const Target& target,
                             const Whole<Compute<T>>& w, int64_t row, int64_t first) {
  using A = Compute<T>;
  using L = Lane<A>;
  const Numbers<A>& results = call.results;
  if constexpr (kForm == Form::kSpread) {
    if (results.log_prob != nullptr && call.per_row > 0) {
      for (int64_t k = team.rank(); k < call.per_row; k += team.size()) {
        const int64_t i = row * call.per_row + k;
        results.log_prob[i] = log_prob_of<L>(w.s.m - call.hot_z[i], w.log_d);
      }
    }
  }
  if (team.rank() != 0) return;
  const bool counts = target.counts;
  const A below = w.s.m - target.hot_z, lse = lse_of<L>(w.s.m, w.log_d);
  if (results.loss != nullptr) {
    A loss = target.hot >= 0 ? hot_loss<L>(target.hot_mass, below, w.log_d) : A(0);
    if constexpr (kForm == Form::kSpread) {
      A below_m = w.s.below;
      if (call.parts.at != nullptr) below_m = with_indices(call, row, w.s.m, below_m);
      loss += spread_loss<L>(w.s.mass + w.hot.mass, below_m, w.log_d);
    }
    call.add_squared_lse(loss, target.weight, lse);
    loss *= number_at<A>(call.row_weight, row, 1);
    results.loss[row] = counts ? loss : A(0);
  }
  if (results.log_prob != nullptr && call.per_row == 0) {
    results.log_prob[row] = counts ? log_prob_of<L>(below, w.log_d) : A(0);
  }
  if (results.lse != nullptr) results.lse[row] = counts ? lse : A(0);
  if (results.entropy != nullptr) {
    results.entropy[row] = counts ? entropy_of<L>(w.log_d, w.mean_below) : A(0);
  }
  if (call.argmax != nullptr) call.argmax[row] = counts ? first : -1;
  if (call.correct != nullptr) call.correct[row] = counts && first == target.hot;
  write_parts(call, target, w.s, row);
}

}  // namespace
}  // namespace softkern::cuda
