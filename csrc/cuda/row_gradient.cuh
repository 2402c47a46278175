// SPDX-License-Identifier: Apache-2.0
// The gradient of a row of row_losses, from the statistics of the whole row (common/row_losses.h).
#pragma once

#include "../common/loss.h"
#include "row_targets.cuh"

namespace softkern::cuda {
namespace {

/// The statistics of a whole row, and what its results and its gradient are made of.
template <class A>
struct Whole {
  RowStats<A> s;
  HotSums<A> hot;
  A log_d, divisor, mean_below;

  /// The latter from the former.
  SK_INLINE void find() {
    log_d = s.log_d();
    divisor = Lane<A>::divisor(s.total());
    mean_below = Lane<A>::over(s.terms_below, divisor);
  }
};

/// What the gradient of every class of a row depends on.
template <class A>
struct Pull {
  A loss;     // g r
  A common;   // alpha without the hot parts
  A entropy;  // g_h
};

/// dz of a hot class. h: its hot part; others: that of all other classes.
template <class A>
SK_INLINE A hot_dz(const Whole<A>& w, const Pull<A>& pull, A z, A h, A others) {
  const RowStats<A>& s = w.s;
  const A e = Terms<A>(finite(s.m)).of(z);
  // Where e is 0, m - z may be infinite.
  const A of_entropy = e == 0 ? A(0) : pull.entropy * (s.m - z - w.mean_below);
  return hot_gradient<Lane<A>>(A(1), h, pull.common + others + of_entropy, z, e, s.m, s.ties, s.rest,
                               w.divisor);
}

template <class T, Form kForm, class Index, class Row>
SK_INLINE void write_gradient(Row& row, const RowLossCall<T>& call, const RowTarget<T, kForm, Index>& target,
                              const Span<T>& out, const Whole<Compute<T>>& w, int64_t number) {
  using A = Compute<T>;
  using L = Lane<A>;
  constexpr bool kPlain = kForm == Form::kPlain, kSpread = kForm == Form::kSpread;
  constexpr bool kHasTerms = kPlain && Row::kHoldsTerms;
  const Numbers<A>& upstream = call.upstream;
  Pull<A> pull{0, 0, 0};
  A hot = 0;
  if (target.counts) {
    pull.loss = call.factor != nullptr ? call.constant_factor * *call.factor : call.constant_factor;
    pull.loss *= number_at<A>(upstream.loss, number, 1);
    pull.loss *= number_at<A>(call.row_weight, number, 1);
    const A lse = lse_of<L>(w.s.m, w.log_d);
    pull.common = common_pull<L>(pull.loss, w.s.mass, call.z_loss, target.weight, lse,
                                 number_at<A>(upstream.lse, number, 0));
    if (!kPlain) pull.entropy = number_at<A>(upstream.entropy, number, 0);
    hot = pull.loss * (target.hot_mass + w.hot.mass) - w.hot.log_prob;
    // The only index of the row, which may be another class than those of the logits.
    if (call.per_row == 0) hot -= number_at<A>(upstream.log_prob, number, 0);
  }
  const A unit = kHasTerms ? A(1) : TermsOf<T>::kUnit;
  const A alpha = pull.common + hot;
  const A scale = L::over(alpha - pull.entropy * w.mean_below, w.divisor) * unit;
  const A slope = L::over(pull.entropy, w.divisor) * unit;
  const TermsOf<T> terms(finite(w.s.m));
  row.write(out, [&](auto& v, Index c) {  // 3 write
    constexpr int V = sizeof(v) / sizeof(A);
    to_z<kForm, Row>(call.logit, v);
    A dz[V];
    SK_UNROLL
    for (int i = 0; i < V; ++i) {
      const A e = kHasTerms ? v[i] : terms.of(v[i]);
      dz[i] = kPlain ? e * scale : term_pull<L>(scale, slope, e, w.s.m - v[i]);
    }
    if constexpr (kSpread) {
      A a[V];
      if (target.mass.load(c, a)) {
        SK_UNROLL
        for (int i = 0; i < V; ++i) dz[i] = less_mass<L>(dz[i], a[i], -pull.loss);
      }
    }
    SK_UNROLL
    for (int i = 0; i < V; ++i) {
      if (!kPlain) dz[i] *= logit_slope<L>(call.logit, v[i]);
      v[i] = target.counts ? dz[i] : A(0);
    }
  });
  // As in cross_entropy.cu, hot classes are written after the loop.
  const auto put = [&](Index y, A z, A dz) {
    if constexpr (kSpread) {
      A a[1];
      if (target.mass.load(y, a)) dz = less_mass<L>(dz, a[0], -pull.loss);
    }
    row.put(out, y, kPlain ? dz : dz * logit_slope<L>(call.logit, z));
  };
  Index y = target.hot;
  forget(y);
  if (y >= 0) put(y, target.hot_z, hot_dz(w, pull, target.hot_z, hot, A(0)));
  if constexpr (kSpread) {
    const int64_t begin = number * call.per_row, end = target.counts ? begin + call.per_row : begin;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t index = call.target.of(i), own_class = call.own_class(index);
      if (own_class < 0 || !row.has(static_cast<Index>(own_class))) continue;
      // Repeated indices add up; each of them writes the same.
      A own = 0, others = 0;
      for (int64_t j = begin; j < end; ++j) {
        const A h = pull.loss * call.hot_mass_at(j) - number_at<A>(upstream.log_prob, j, 0);
        const bool same = call.target.of(j) == index;
        own += same ? h : A(0);
        others += same ? A(0) : h;
      }
      const A z = call.hot_z[i];
      put(static_cast<Index>(own_class), z, hot_dz(w, pull, z, own, others));
    }
  }
}

/// Writes zeros to the gradient's classes that are not read.
template <class T>
SK_INLINE void clear_others(const Grid& grid, const RowLossCall<T>& call, int64_t row, int rank, int size) {
  if (row >= grid.rows || call.grad.data == nullptr) return;
  T* dx = row_of<T>(call.grad, row, grid.shape.inner);
  for (int64_t c = grid.shape.classes + rank; c < call.classes; c += size) {
    dx[c * call.grad.class_stride] = narrow<T>(0);
  }
}

}  // namespace
}  // namespace softkern::cuda
