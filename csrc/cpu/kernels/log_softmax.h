// SPDX-License-Identifier: Apache-2.0
// y_c = (x_c - m) - log d,   m = max_c x_c,   d = sum_c exp(x_c - m);    dx_c = g_c - exp(y_c) sum_k g_k
#pragma once

#include "operand.h"
#include "row_stats.h"

namespace softkern::cpu {
namespace {

template <class T>
void log_softmax_row(const T* x, T* y, int64_t n) {
  using A = Compute<T>;
  using S = Simd<A>;
  const RowStats<A> stats = row_stats<A>(x, static_cast<A*>(nullptr), n);  // 1 max, 2 sum-exp
  const auto m = S::broadcast(stats.m);
  const auto log_d = S::broadcast(stats.log_d());
  for_each_vector<A>(n, [&](auto, auto at, int64_t i) __attribute__((always_inline)) {  // 3 write
    // Not x - (m + log d): with logits around 1e6 that sum would lose log d.
    at.store(y + i, S::sub(S::sub(at.load(x + i, 0), m), log_d));
  });
}

template <class T>
void log_softmax_backward_row(const T* g, const T* y, T* dx, int64_t n) {
  using A = Compute<T>;
  using S = Simd<A>;
  const auto total =
      sum_row<A, 1>(n, [&](auto* part, auto slot, auto at, int64_t i)
                           __attribute__((always_inline)) { part->add(slot, at.load(g + i, 0)); });
  const auto minus_sum = S::broadcast(-total.of[0]);
  for_each_vector<A>(n, [&](auto, auto at, int64_t i) __attribute__((always_inline)) {
    at.store(dx + i, S::fma(exp<A>(at.load(y + i, 0)), minus_sum, at.load(g + i, 0)));
  });
}

}  // namespace
}  // namespace softkern::cpu
