// SPDX-License-Identifier: Apache-2.0
// With a_c the target mass of class c, A = sum_c a_c, m = max_c x_c, d = sum_c exp(x_c - m):
//   loss  = sum_c a_c ((m - x_c) + log d)
//   dx_c  = g (A exp(x_c - m) / d - a_c)
// Class index y:        a_c = (1 - s) w_y [c = y] + s/C w_c        (s label_smoothing, w weight, 1 without)
// Class probabilities:  a_c = w_c ((1 - s) t_c + s/C)
// m and d stay apart: m + log d, rounded, would lose the loss of logits that share a large offset.
#pragma once

#include "operand.h"
#include "row_stats.h"

namespace softkern::cpu {
namespace {

// The part of the mass that every class has, as vectors; the class index's own part (`hot`) is a scalar.
struct NoMass {};

template <class A>
struct UniformMass {
  A share;  // s/C
  template <class At>
  SK_INLINE auto load(const At&, int64_t) const {
    return Simd<A>::broadcast(share);
  }
};

template <class T>
struct WeightMass {
  using A = Compute<T>;
  const T* weight;
  A share;  // s/C
  template <class At>
  SK_INLINE auto load(const At& at, int64_t i) const {
    return Simd<A>::mul(Simd<A>::broadcast(share), at.load(weight + i, 0));
  }
};

template <class T, bool kWeighted>
struct ProbabilityMass {
  using A = Compute<T>;
  const T* weight;
  const T* probability;
  A keep;   // 1 - s
  A share;  // s/C
  template <class At>
  SK_INLINE auto load(const At& at, int64_t i) const {
    using S = Simd<A>;
    const auto t = S::fma(at.load(probability + i, 0), S::broadcast(keep), S::broadcast(share));
    if constexpr (kWeighted) {
      return S::mul(t, at.load(weight + i, 0));
    } else {
      return t;
    }
  }
};

template <class A>
struct Hot {
  int64_t index;  // -1: none
  A mass;         // (1 - s) w_y
};

/// of[0] = sum a_c, of[1] = sum a_c (m - x_c)
template <class A, class T, class Mass>
SK_INLINE Sums<A, 2> sum_mass(const T* x, A m, const Mass& mass, int64_t n) {
  using S = Simd<A>;
  const auto vm = S::broadcast(m);
  return sum_row<A, 2>(n, [&](auto* part, auto slot, auto at, int64_t i) __attribute__((always_inline)) {
    // s/C is a mass of classes, not of lanes: those behind the end are cleared. There x is filled with m,
    // so that they don't make 0 * inf.
    const auto a = at.keep(mass.load(at, i));
    part[0].add(slot, a);
    part[1].add_product(slot, a, S::sub(vm, at.load(x + i, m)));
  });
}

/// Loss of a row; with grad given, its gradient times factor. grad may be x: nothing is read from x once e is
/// written.
template <class T, class Mass>
Compute<T> cross_entropy_row(const T* x, const Mass& mass, Hot<Compute<T>> hot, T* grad, Compute<T> factor,
                             Compute<T>* scratch, int64_t n, const T* next) {
  using A = Compute<T>;
  using S = Simd<A>;
  constexpr bool kSpread = !__is_same(Mass, NoMass);
  A* e = grad != nullptr ? compute_row(grad, scratch) : nullptr;
  const A hot_x = hot.index >= 0 ? widen(x[hot.index]) : A(0);
  const RowRange<A> range = row_range<A>(x, n);  // 1 max
  const A m = range.most;
  Sums<A, 2> sums{};
  if constexpr (kSpread) sums = sum_mass(x, m, mass, n);
  const RowStats<A> stats = row_stats<A>(x, e, n, next, range);  // 2 sum-exp
  const A log_d = stats.log_d();
  A loss = hot.index >= 0 ? hot.mass * ((m - hot_x) + log_d) : A(0);
  const A spread = sums.of[0];  // mass of the classes but for the hot part
  if constexpr (kSpread) loss += sums.of[1] + spread * log_d;
  if (grad == nullptr) return loss;

  const A total = hot.mass + spread;
  const A sum = stats.sum();
  // The true class, from numbers of the compute type: p - 1 of a p already rounded to 16 bits is off by up
  // to 100 % for confident rows. Where p is close to 1 even the compute type loses p - 1, and the other
  // classes give it. Read before step 3 overwrites e.
  A hot_grad = 0;
  if (hot.index >= 0) {
    const A p = e[hot.index] / sum;
    const bool alone = hot_x == m && stats.ties == 1;
    hot_grad = factor * (hot.mass * (alone ? -stats.rest / sum : p - 1) + spread * p);
  }

  const auto scale = S::broadcast(factor * total / sum);
  const auto minus_factor = S::broadcast(-factor);
  for_each_vector<A>(n, [&](auto, auto at, int64_t i) __attribute__((always_inline)) {  // 3 write
    const auto v = at.load(e + i, 0);
    if constexpr (kSpread) {
      at.store(grad + i, S::fma(v, scale, S::mul(minus_factor, mass.load(at, i))));
    } else {
      at.store(grad + i, S::mul(v, scale));
    }
  });
  if (hot.index >= 0) {
    if constexpr (kSpread) {
      const int64_t y = hot.index;
      A lanes[S::kLanes];
      S::store(lanes, mass.load(Tail<A>{1}, y));
      hot_grad -= factor * lanes[0];
    }
    grad[hot.index] = Narrow<T>::from(hot_grad);
  }
  return loss;
}

template <class T>
void zero_row(T* row, int64_t n) {
  __builtin_memset(row, 0, static_cast<size_t>(n) * sizeof(T));
}

}  // namespace
}  // namespace softkern::cpu
