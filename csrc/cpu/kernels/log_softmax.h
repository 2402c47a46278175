// SPDX-License-Identifier: Apache-2.0
// y_c = (x_c - m) - log d,   m = max_c x_c,   d = sum_c exp(x_c - m);    dx_c = g_c - exp(y_c) sum_k g_k
#pragma once

#include "drive.h"

namespace softkern::cpu {
namespace {

template <class A>
struct LogNormaliser {
  A m, log_d;
};

template <class T>
SK_CALL void log_softmax_write(const T* x, T* y, LogNormaliser<Compute<T>> row, int64_t n, bool stream) {
  using A = Compute<T>;
  using S = Simd<A>;
  const auto m = S::broadcast(row.m);
  const auto log_d = S::broadcast(row.log_d);
  write_vectors<A>(y, n, stream, [&](auto at, int64_t i) __attribute__((always_inline)) {
    // Not x - (m + log d): with logits around 1e6 that sum would lose log d.
    return S::sub(S::sub(at.load(x + i, 0), m), log_d);
  });
}

/// Calls finish(r, normaliser) for the rows [first, first + count); begin(r) returns the statistics of a row.
/// The logarithms of several rows are computed together: a logarithm after each row would delay its
/// neighbours.
template <class A, class Begin, class Finish>
SK_INLINE void for_each_log_softmax_row(int64_t first, int64_t count, bool lag, Begin begin, Finish finish) {
  constexpr int kMost = 4;
  const int most = lag ? kMost : 1;
  RowStats<A> stats[kMost];
  for (int64_t r = first; r < first + count; r += most) {
    const int n = static_cast<int>(first + count - r < most ? first + count - r : most);
    double q[kMost];
    for (int k = 0; k < n; ++k) {
      stats[k] = begin(r + k);
      q[k] = stats[k].others();
    }
    log_one_plus_of(q, n);
    for (int k = 0; k < n; ++k) finish(r + k, LogNormaliser<A>{stats[k].m, static_cast<A>(q[k])});
  }
}

template <class T>
void log_softmax_chunk(const T* x, T* y, const SharedRow<Compute<T>>& row, int step) {
  if (step == 0) row.find_range(x);
  if (step == 1) row.sum_terms(x, static_cast<Compute<T>*>(nullptr));
  if (step == 2) {
    const RowStats<Compute<T>> stats = row.stats();
    log_softmax_write(x + row.begin(), y + row.begin(), {stats.m, stats.log_d()}, row.size(), false);
  }
}

/// Which exp the outputs y of a row allow.
/// kNormal: exp of every output is a normal number, as in rows without masked classes.
/// kLow: no output is large, as in all results of log_softmax.
/// kAny: the outputs can be any numbers.
enum class Exps { kNormal, kLow, kAny };

template <Exps kExps, class S>
SK_INLINE typename S::Reg exp_of(const typename S::Reg& y) {
  if constexpr (kExps == Exps::kNormal) return exp_normal<S>(y);
  if constexpr (kExps == Exps::kLow) return exp_low<S>(y);
  return exp<S>(y);
}

template <class A, Exps kExps>
SK_INLINE typename Simd<A>::Reg log_softmax_gradient(const typename Simd<A>::Reg& g,
                                                     const typename Simd<A>::Reg& y,
                                                     const typename Simd<A>::Reg& minus_sum) {
  return Simd<A>::fma(exp_of<kExps, Simd<A>>(y), minus_sum, g);
}

template <class A>
SK_INLINE Exps exps_of(const RowRange<A>& y) {
  using R = ExpRange<A>;
  if (y.least >= -R::kNormal && y.most <= R::kNormal) return Exps::kNormal;
  return y.most <= R::kLow ? Exps::kLow : Exps::kAny;
}
/// The same for one row per lane.
template <class A>
SK_INLINE Exps exps_of(const typename Simd<A>::Reg& least, const typename Simd<A>::Reg& most) {
  using S = Simd<A>;
  using R = ExpRange<A>;
  if (S::all_at_least(least, S::broadcast(-R::kNormal)) && S::all_at_least(S::broadcast(R::kNormal), most))
    return Exps::kNormal;
  return S::all_at_least(S::broadcast(R::kLow), most) ? Exps::kLow : Exps::kAny;
}

/// Computes sum_k g_k, passes the sums of its blocks to `take`, and returns the range of y.
template <class T, class Take>
SK_INLINE RowRange<Compute<T>> log_softmax_sum(const T* g, const T* y, int64_t n, Take take) {
  using A = Compute<T>;
  Accumulators<A> least, most;
  sum_blocks<A, 1>(
      n,
      [&](auto* part, auto slot, auto at, int64_t i) __attribute__((always_inline)) {
        part->add(slot, at.load(g + i, 0));
        const auto v = at.load(y + i, 0);
        least.take_min(slot, v);
        most.take_max(slot, v);
      },
      take);
  return {least.min(), most.max()};
}

/// exp of the outputs, as the Terms of four_terms.
template <Exps kExps, class S>
struct PlainExp {
  static SK_INLINE typename S::Reg of(const typename S::Reg& x) { return exp_of<kExps, S>(x); }
  template <class W>
  SK_INLINE typename W::Reg in_step(const typename W::Reg& x) const {
    return exp_of<kExps, W>(x);
  }
};

template <Exps kExps, class T>
SK_INLINE void log_softmax_write_gradient(const T* g, const T* y, T* dx, Compute<T> sum, int64_t n,
                                          bool stream) {
  using A = Compute<T>;
  using S = Simd<A>;
  const auto minus_sum = S::broadcast(-sum);
  write_fours<A>(
      dx, n, stream,
      [&](int64_t i, typename S::Reg(&v)[4]) __attribute__((always_inline)) {
        typename S::Reg p[4];
        for (int k = 0; k < 4; ++k) v[k] = S::load(y + i + k * S::kLanes);
        four_terms<S>(PlainExp<kExps, S>(), v, p);
        for (int k = 0; k < 4; ++k) v[k] = S::fma(p[k], minus_sum, S::load(g + i + k * S::kLanes));
      },
      [&](auto at, int64_t i) __attribute__((always_inline)) {
        return log_softmax_gradient<A, kExps>(at.load(g + i, 0), at.load(y + i, 0), minus_sum);
      });
}

template <class T>
SK_INLINE void log_softmax_write_gradient(const T* g, const T* y, T* dx, Compute<T> sum,
                                          const RowRange<Compute<T>>& range, int64_t n, bool stream = false) {
  const Exps exps = exps_of(range);
  if (exps == Exps::kNormal) {
    log_softmax_write_gradient<Exps::kNormal>(g, y, dx, sum, n, stream);
  } else if (exps == Exps::kLow) {
    log_softmax_write_gradient<Exps::kLow>(g, y, dx, sum, n, stream);
  } else {
    log_softmax_write_gradient<Exps::kAny>(g, y, dx, sum, n, stream);
  }
}

template <class T>
void log_softmax_backward_row(const T* g, const T* y, T* dx, int64_t n, bool stream) {
  using A = Compute<T>;
  BlockSums<A, 1> total;
  const RowRange<A> range = log_softmax_sum(
      g, y, n, [&](const Accumulators<A>* part) __attribute__((always_inline)) { total.add(part); });
  log_softmax_write_gradient(g, y, dx, total.sums().of[0], range, n, stream);
}

template <class T>
void log_softmax_backward_chunk(const T* g, const T* y, T* dx, const SharedRow<Compute<T>>& row, int step) {
  const int64_t at = row.begin();
  if (step == 0) row.set_range(log_softmax_sum(g + at, y + at, row.size(), row.store_sums()));
  if (step == 1)
    log_softmax_write_gradient(g + at, y + at, dx + at, row.stored_sum(), row.range(), row.size());
}

/// One row per lane.
template <class T, class Order>
SK_INLINE void log_softmax_lanes(const LaneInput<T>& input, const LaneOutput<T>& output,
                                 const LaneBlock* blocks, int count, const LaneTile<Compute<T>>& x,
                                 int64_t classes) {
  using A = Compute<T>;
  using S = Simd<A>;
  LaneRange<A> range[kMostLaneBlocks];
  LaneStats<A, Order> stats[kMostLaneBlocks];
  input.load(blocks, count, x, range);                                                    // 1 max
  lane_sums(x, false, count, classes, range, stats, input.ahead(blocks, count, x.data));  // 2 sum-exp
  output.store(blocks, count, x, [&](int b, auto body) __attribute__((always_inline)) {   // 3 write
    const auto* const xb = x[b];
    const auto m = stats[b].m, log_d = stats[b].log_d();
    body([&](int64_t c) __attribute__((always_inline)) { return S::sub(S::sub(xb[c], m), log_d); });
  });
}

template <class T, class Order>
SK_INLINE void log_softmax_backward_lanes(const LaneOutput<T>& dx, const LaneBlock* blocks, int count,
                                          const LaneTile<Compute<T>>& g, const LaneTile<Compute<T>>& y,
                                          int64_t classes) {
  using A = Compute<T>;
  using S = Simd<A>;
  using Reg = typename S::Reg;
  dx.store(blocks, count, g, [&](int b, auto body) __attribute__((always_inline)) {
    const Reg *const gb = g[b], *const yb = y[b];
    LaneRange<A> range;
    range.begin();
    Reg total[1];
    Order::sum(classes, total, [&](Reg* acc, int64_t c) __attribute__((always_inline)) {
      acc[0] = S::add(acc[0], gb[c]);
      range.take(yb[c]);
    });
    const Reg minus_sum = S::sub(S::broadcast(-0.0), total[0]);  // -0 if the sum is +0
    const Exps exps = exps_of<A>(range.least, range.most);
    if (exps == Exps::kAny) {  // not results of log_softmax: need not be fast
      for (int64_t c = 0; c < classes; ++c)
        g[b][c] = log_softmax_gradient<A, Exps::kAny>(gb[c], yb[c], minus_sum);
      body([&](int64_t c) __attribute__((always_inline)) { return gb[c]; });
      return;
    }
    body([&](int64_t c) __attribute__((always_inline)) {
      return exps == Exps::kNormal ? log_softmax_gradient<A, Exps::kNormal>(gb[c], yb[c], minus_sum)
                                   : log_softmax_gradient<A, Exps::kLow>(gb[c], yb[c], minus_sum);
    });
  });
}

constexpr ForwardKind kLogSoftmax{true, false};

template <class T>
Ran log_softmax(const ForwardArgs& a, Range range) {
  using A = Compute<T>;
  const int64_t classes = a.shape.classes;
  RowWalk<T> walk(classes);
  return forward<T>(
      a, range, kLogSoftmax,
      [&](auto order, const auto& input, const auto& output, const LaneBlock* blocks, int count,
          const auto& x) { log_softmax_lanes<T, decltype(order)>(input, output, blocks, count, x, classes); },
      [](int64_t first, int64_t count, bool lag, auto begin, auto finish)
          __attribute__((always_inline)) { for_each_log_softmax_row<A>(first, count, lag, begin, finish); },
      [&](int64_t, const T* x, A*, const T* next) __attribute__((always_inline)) {
        return walk.stats(x, nullptr, next, walk.range(x));  // 1 max, 2 sum-exp
      },
      [&](int64_t, const T* x, A*, T* y, const LogNormaliser<A>& row, bool stream)
          __attribute__((always_inline)) { log_softmax_write(x, y, row, classes, stream); });
}

template <class T>
size_t log_softmax_scratch(const ForwardArgs& a, int64_t rows) {
  return forward_scratch<T>(a, rows, kLogSoftmax);
}

template <class T>
constexpr Kernel<ForwardArgs> log_softmax_kernel() {
  return {&fenced<ForwardArgs, &log_softmax<T>>, &log_softmax_scratch<T>,
          &forward_chunk<T, kLogSoftmax, &log_softmax_chunk<T>>, 3, &forward_shared<T, kLogSoftmax>};
}

template <class T>
Ran log_softmax_backward(const BackwardArgs& a, Range range) {
  return backward<T, &log_softmax_backward_row<T>>(
      a, range,
      [&](auto order, const auto& dx, const LaneBlock* blocks, int count, const auto& g, const auto& y) {
        log_softmax_backward_lanes<T, decltype(order)>(dx, blocks, count, g, y, a.shape.classes);
      });
}

template <class T>
constexpr Kernel<BackwardArgs> log_softmax_backward_kernel() {
  return {&fenced<BackwardArgs, &log_softmax_backward<T>>, &backward_scratch<T>,
          &backward_chunk<T, &log_softmax_backward_chunk<T>>, 2, &backward_shared<T>};
}

}  // namespace
}  // namespace softkern::cpu
