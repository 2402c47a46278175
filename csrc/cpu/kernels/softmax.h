// SPDX-License-Identifier: Apache-2.0
// y_c = exp(x_c - m) / d,   m = max_c x_c,   d = sum_c exp(x_c - m);     dx_c = y_c (g_c - sum_k g_k y_k)
#pragma once

#include "drive.h"

namespace softkern::cpu {
namespace {

/// e / d, rounded once, in the time of three multiplications: the remainder corrects e * (1/d) (Markstein,
/// 1990).
template <class A>
SK_INLINE typename Simd<A>::Reg quotient(const typename Simd<A>::Reg& e, const typename Simd<A>::Reg& d,
                                         const typename Simd<A>::Reg& inverse) {
  using S = Simd<A>;
  const auto q = S::mul(e, inverse);
  return S::fma(S::fma(S::sub(S::broadcast(0), q), d, e), inverse, q);
}

template <class T>
SK_INLINE void softmax_write(const Compute<T>* e, T* y, Compute<T> total, int64_t n, bool stream = false) {
  using A = Compute<T>;
  using S = Simd<A>;
  const auto d = S::broadcast(total);
  const auto inverse = S::broadcast(1 / total);
  write_vectors<A>(y, n, stream, [&](auto at, int64_t i) __attribute__((always_inline)) {
    return quotient<A>(at.load(e + i, 0), d, inverse);
  });
}

/// Writes the terms to e and returns their sum.
template <class T>
SK_INLINE Compute<T> softmax_sum(RowWalk<T>& walk, const T* x, Compute<T>* e, const T* next) {
  return walk.stats(x, e, next, walk.range(x)).sum();  // 1 max, 2 sum-exp
}

template <class T>
void softmax_chunk(const T* x, T* y, const SharedRow<Compute<T>>& row, int step) {
  using A = Compute<T>;
  A* e = compute_row(y, row.scratch());
  if (step == 0) row.find_range(x);
  if (step == 1) row.sum_terms(x, e);
  if (step == 2) softmax_write(e + row.begin(), y + row.begin(), row.stats().sum(), row.size());
}

/// Computes sum_k g_k y_k and passes the sums of its blocks to `take`.
template <class T, class Take>
SK_INLINE void softmax_dot(const T* g, const T* y, int64_t n, Take take) {
  sum_blocks<Compute<T>, 1>(
      n,
      [&](auto* part, auto slot, auto at, int64_t i)
          __attribute__((always_inline)) { part->add_product(slot, at.load(g + i, 0), at.load(y + i, 0)); },
      take);
}

template <class T>
SK_INLINE void softmax_write_gradient(const T* g, const T* y, T* dx, Compute<T> dot, int64_t n,
                                      bool stream = false) {
  using A = Compute<T>;
  using S = Simd<A>;
  const auto sum = S::broadcast(dot);
  write_vectors<A>(dx, n, stream, [&](auto at, int64_t i) __attribute__((always_inline)) {
    return S::mul(at.load(y + i, 0), S::sub(at.load(g + i, 0), sum));
  });
}

template <class T>
void softmax_backward_row(const T* g, const T* y, T* dx, int64_t n, bool stream) {
  using A = Compute<T>;
  BlockSums<A, 1> dot;
  softmax_dot(g, y, n, [&](const Accumulators<A>* part) __attribute__((always_inline)) { dot.add(part); });
  softmax_write_gradient(g, y, dx, dot.sums().of[0], n, stream);
}

template <class T>
void softmax_backward_chunk(const T* g, const T* y, T* dx, const SharedRow<Compute<T>>& row, int step) {
  const int64_t at = row.begin();
  if (step == 0) softmax_dot(g + at, y + at, row.size(), row.store_sums());
  if (step == 1) softmax_write_gradient(g + at, y + at, dx + at, row.stored_sum(), row.size());
}

/// One row per lane.
template <class T, class Order>
SK_INLINE void softmax_lanes(const LaneInput<T>& input, const LaneOutput<T>& output, const LaneBlock* blocks,
                             int count, const LaneTile<Compute<T>>& x, int64_t classes) {
  using A = Compute<T>;
  using S = Simd<A>;
  LaneRange<A> range[kMostLaneBlocks];
  LaneStats<A, Order> stats[kMostLaneBlocks];
  input.load(blocks, count, x, range);                                                   // 1 max
  lane_sums(x, true, count, classes, range, stats, input.ahead(blocks, count, x.data));  // 2 sum-exp
  output.store(blocks, count, x, [&](int b, auto body) __attribute__((always_inline)) {  // 3 write
    const auto* const e = x[b];
    const auto d = stats[b].sum();
    const auto inverse = S::div(S::broadcast(1), d);
    body([&](int64_t c) __attribute__((always_inline)) { return quotient<A>(e[c], d, inverse); });
  });
}

template <class T, class Order>
SK_INLINE void softmax_backward_lanes(const LaneOutput<T>& dx, const LaneBlock* blocks, int count,
                                      const LaneTile<Compute<T>>& g, const LaneTile<Compute<T>>& y,
                                      int64_t classes) {
  using S = Simd<Compute<T>>;
  using Reg = typename S::Reg;
  dx.store(blocks, count, g, [&](int b, auto body) __attribute__((always_inline)) {
    const Reg *const gb = g[b], *const yb = y[b];
    Reg dot[1];
    Order::sum(classes, dot, [&](Reg* acc, int64_t c) __attribute__((always_inline)) {
      acc[0] = S::fma(gb[c], yb[c], acc[0]);
    });
    body([&](int64_t c) __attribute__((always_inline)) { return S::mul(yb[c], S::sub(gb[c], dot[0])); });
  });
}

constexpr ForwardKind kSoftmax{true, true};

template <class T>
Ran softmax(const ForwardArgs& a, Range range) {
  using A = Compute<T>;
  const int64_t classes = a.shape.classes;
  RowWalk<T> walk(classes);
  return forward<T>(
      a, range, kSoftmax,
      [&](auto order, const auto& input, const auto& output, const LaneBlock* blocks, int count,
          const auto& x) { softmax_lanes<T, decltype(order)>(input, output, blocks, count, x, classes); },
      [&](int64_t, const T* x, A* e, const T* next)
          __attribute__((always_inline)) { return softmax_sum(walk, x, e, next); },
      [&](int64_t, const T*, const A* e, T* y, A sum, bool stream)
          __attribute__((always_inline)) { softmax_write(e, y, sum, classes, stream); });
}

template <class T>
size_t softmax_scratch(const ForwardArgs& a, int64_t rows) {
  return forward_scratch<T>(a, rows, kSoftmax);
}

template <class T>
constexpr Kernel<ForwardArgs> softmax_kernel() {
  return {&fenced<ForwardArgs, &softmax<T>>, &softmax_scratch<T>,
          &forward_chunk<T, kSoftmax, &softmax_chunk<T>>, 3, &forward_shared<T, kSoftmax>};
}

template <class T>
Ran softmax_backward(const BackwardArgs& a, Range range) {
  return backward<T, &softmax_backward_row<T>>(
      a, range,
      [&](auto order, const auto& dx, const LaneBlock* blocks, int count, const auto& g, const auto& y) {
        softmax_backward_lanes<T, decltype(order)>(dx, blocks, count, g, y, a.shape.classes);
      });
}

template <class T>
constexpr Kernel<BackwardArgs> softmax_backward_kernel() {
  return {&fenced<BackwardArgs, &softmax_backward<T>>, &backward_scratch<T>,
          &backward_chunk<T, &softmax_backward_chunk<T>>, 2, &backward_shared<T>};
}

}  // namespace
}  // namespace softkern::cpu
