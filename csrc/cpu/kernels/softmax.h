// SPDX-License-Identifier: Apache-2.0
// y_c = exp(x_c - m) / d,   m = max_c x_c,   d = sum_c exp(x_c - m);     dx_c = y_c (g_c - sum_k g_k y_k)
#pragma once

#include "operand.h"
#include "row_stats.h"

namespace softkern::cpu {
namespace {

template <class T>
void softmax_row(const T* x, T* y, Compute<T>* scratch, int64_t n) {
  using A = Compute<T>;
  using S = Simd<A>;
  A* e = compute_row(y, scratch);
  const A sum = row_stats<A>(x, e, n).sum();  // 1 max, 2 sum-exp
  const auto d = S::broadcast(sum);
  const auto inverse = S::broadcast(1 / sum);
  for_each_vector<A>(n, [&](auto, auto at, int64_t i) __attribute__((always_inline)) {  // 3 write
    // e / d rounded once, for three multiplications' time: the remainder corrects e * (1/d) (Markstein,
    // 1990).
    const auto v = at.load(e + i, 0);
    const auto q = S::mul(v, inverse);
    const auto remainder = S::fma(S::sub(S::broadcast(0), q), d, v);
    at.store(y + i, S::fma(remainder, inverse, q));
  });
}

template <class T>
void softmax_backward_row(const T* g, const T* y, T* dx, int64_t n) {
  using A = Compute<T>;
  using S = Simd<A>;
  const auto dot =
      sum_row<A, 1>(n, [&](auto* part, auto slot, auto at, int64_t i) __attribute__((always_inline)) {
        part->add_product(slot, at.load(g + i, 0), at.load(y + i, 0));
      });
  const auto sum = S::broadcast(dot.of[0]);
  for_each_vector<A>(n, [&](auto, auto at, int64_t i) __attribute__((always_inline)) {
    at.store(dx + i, S::mul(at.load(y + i, 0), S::sub(at.load(g + i, 0), sum)));
  });
}

}  // namespace
}  // namespace softkern::cpu
