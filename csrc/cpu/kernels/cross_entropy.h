// SPDX-License-Identifier: Apache-2.0
// cross_entropy of rows. The formulas and names are those of common/mass.h and common/loss.h.
#pragma once

#include "../../common/loss.h"
#include "../../common/mass.h"
#include "../rows/operand.h"
#include "../rows/shared.h"
#include "../rows/stats.h"
#include "../rows/arithmetic.h"

namespace softkern::cpu {
namespace {

// The spread part of the mass, which every class has, as vectors. The hot part, of the class index (`hot`),
// is a scalar. fetch_next(i) prefetches element i of the next row.
struct NoMass {};

template <class A>
struct UniformMass {
  MassNumbers<A> numbers;
  template <class At>
  SK_INLINE auto load(const At&, int64_t) const {
    return uniform_mass<Simd<A>>(numbers);
  }
  SK_INLINE void fetch_next(int64_t) const {}
};

template <class T>
struct WeightMass {
  using A = Compute<T>;
  const T* weight;
  MassNumbers<A> numbers;
  template <class At>
  SK_INLINE auto load(const At& at, int64_t i) const {
    return weighted<Simd<A>>(uniform_mass<Simd<A>>(numbers), at.load(weight + i, 0));
  }
  SK_INLINE void fetch_next(int64_t) const {}
};

template <class T, bool kWeighted>
struct ProbabilityMass {
  using A = Compute<T>;
  const T* weight;
  const T* probability;
  const T* next;  // the probabilities of the next row, or null
  MassNumbers<A> numbers;
  template <class At>
  SK_INLINE auto load(const At& at, int64_t i) const {
    using S = Simd<A>;
    const auto mass = probability_mass<S>(numbers, at.load(probability + i, 0));
    if constexpr (kWeighted) {
      return weighted<S>(mass, at.load(weight + i, 0));
    } else {
      return mass;
    }
  }
  SK_INLINE void fetch_next(int64_t i) const {
    if (next != nullptr) __builtin_prefetch(next + i);
  }
};

template <class Mass>
constexpr bool kIsSpread = !__is_same(Mass, NoMass);

template <class A>
struct Hot {
  int64_t index;  // -1: none
  A mass;
};

/// Computes the sums of a_c and of a_c (m - x_c) over the classes [begin, end), and passes the sums of their
/// blocks to `take`.
template <class A, class T, class Mass, class Take>
SK_INLINE void sum_mass(const T* x, A m, const Mass& mass, int64_t begin, int64_t end, Take take) {
  using S = Simd<A>;
  const auto vm = S::broadcast(m);
  sum_blocks<A, 2>(
      end - begin,
      [&](auto* part, auto slot, auto at, int64_t i) __attribute__((always_inline)) {
        // Lanes past the end have no class, and so no mass s/C: keep() clears them. Their x is filled with m,
        // to avoid 0 * inf.
        const auto a = at.keep(mass.load(at, begin + i));
        mass.fetch_next(begin + i);
        part[0].add(slot, a);
        part[1].add_product(slot, a, S::sub(vm, at.load(x + begin + i, m)));
      },
      take);
}

/// The numbers from which the loss and the gradient of a row are computed.
template <class A, bool kSpread>
struct CrossEntropySums {
  RowStats<A> stats;
  Hot<A> hot;
  A hot_x;
  Sums<A, 2> mass;  // sums of the spread mass, and of the spread mass times (m - x)

  A loss(A log_d) const {
    using L = OneLane<A>;
    const A own = hot.index >= 0 ? hot_loss<L>(hot.mass, stats.m - hot_x, log_d) : A(0);
    return kSpread ? own + spread_loss<L>(mass.of[0], mass.of[1], log_d) : own;
  }
  A hot_gradient(A hot_e, A factor) const {
    return softkern::hot_gradient<OneLane<A>>(factor, hot.mass, mass.of[0], hot_x, hot_e, stats.m, stats.ties,
                                              stats.rest, stats.sum());
  }
};

/// Step 3 (write) of the classes [begin, end). grad may be e.
template <class T, class Mass, bool kSpread>
SK_CALL void cross_entropy_write(const CrossEntropySums<Compute<T>, kSpread>& row, const Compute<T>* e,
                                 T* grad, const Mass& mass, Compute<T> factor, int64_t begin, int64_t end,
                                 bool stream = false) {
  using A = Compute<T>;
  using S = Simd<A>;
  const int64_t y = row.hot.index;
  const bool holds_hot = y >= begin && y < end;
  A hot_grad = 0;
  if (holds_hot) hot_grad = row.hot_gradient(e[y], factor);  // before e is overwritten
  if constexpr (kSpread) {
    if (holds_hot) {
      A lanes[S::kLanes];
      S::store(lanes, mass.load(Tail<A>{1}, y));
      hot_grad = less_mass<OneLane<A>>(hot_grad, lanes[0], -factor);
    }
  }
  const auto scale =
      S::broadcast(gradient_scale<OneLane<A>>(factor, row.hot.mass, row.mass.of[0], row.stats.sum()));
  const auto minus_factor = S::broadcast(-factor);
  const auto gradient = [&](auto at, int64_t k) __attribute__((always_inline)) {
    const auto v = at.load(e + begin + k, 0);
    if constexpr (kSpread) {
      return S::fma(v, scale, S::mul(minus_factor, mass.load(at, begin + k)));
    } else {
      return S::mul(v, scale);
    }
  };
  if (!stream) {
    store_vectors<A>(grad + begin, end - begin, gradient);
    if (holds_hot) grad[y] = Narrow<T>::from(hot_grad);
    return;
  }
  // The gradient of the true class is stored with its vector: stored later, it would wait until its cache
  // line is loaded again from memory.
  stream_vectors<A>(grad + begin, end - begin, [&](auto at, int64_t k) __attribute__((always_inline)) {
    const auto v = gradient(at, k);
    const int64_t lane = y - (begin + k);
    if (lane < 0 || lane >= S::kLanes) return v;
    A lanes[S::kLanes];
    S::store(lanes, v);
    lanes[lane] = hot_grad;
    return S::load(lanes);
  });
}

/// Steps 1 (max) and 2 (sum-exp) of a row. If e is not null, it receives the terms; it may be the row itself.
template <class T, class Mass>
SK_INLINE CrossEntropySums<Compute<T>, kIsSpread<Mass>> cross_entropy_sums(RowWalk<T>& walk, const T* x,
                                                                           const Mass& mass,
                                                                           Hot<Compute<T>> hot, Compute<T>* e,
                                                                           int64_t n, const T* next) {
  using A = Compute<T>;
  const A hot_x = hot.index >= 0 ? widen(x[hot.index]) : A(0);
  const RowRange<A> range = walk.range(x);
  BlockSums<A, 2> spread;
  if constexpr (kIsSpread<Mass>) {
    sum_mass<A>(x, range.most, mass, 0, n,
                [&](const Accumulators<A>* part) __attribute__((always_inline)) { spread.add(part); });
  }
  return {walk.stats(x, e, next, range), hot, hot_x, kIsSpread<Mass> ? spread.sums() : Sums<A, 2>{}};
}

/// Computes the losses of many rows together: a logarithm after each row would delay the next row.
template <class A, bool kSpread>
class LossBatch {
  static constexpr int kRows = 32;

 public:
  explicit LossBatch(A* loss) : loss_(loss) {}
  void add(int64_t r, const CrossEntropySums<A, kSpread>& row) {
    index_[count_] = r;
    row_[count_++] = row;
    if (count_ == kRows) flush();
  }
  SK_CALL void flush() {
    double q[kRows];
    for (int k = 0; k < count_; ++k) q[k] = row_[k].stats.others();
    log_one_plus_of(q, count_);
    for (int k = 0; k < count_; ++k) loss_[index_[k]] = row_[k].loss(static_cast<A>(q[k]));
    count_ = 0;
  }

 private:
  A* loss_;
  int count_ = 0;
  int64_t index_[kRows];
  CrossEntropySums<A, kSpread> row_[kRows];
};

template <class T, class Mass>
void cross_entropy_chunk(const T* x, const Mass& mass, Hot<Compute<T>> hot, T* grad, Compute<T> factor,
                         Compute<T>* loss, const SharedRow<Compute<T>>& shared, int step) {
  using A = Compute<T>;
  constexpr bool kSpread = kIsSpread<Mass>;
  A* e = grad != nullptr ? compute_row(grad, shared.scratch()) : nullptr;
  if (step == 0) {
    // If the gradient is written over the logits, this logit is lost before the loss is computed.
    if (shared.first()) shared.hot_x() = hot.index >= 0 ? widen(x[hot.index]) : A(0);
    shared.find_range(x);
  }
  if (step == 1) {
    if constexpr (kSpread)
      sum_mass<A>(x, shared.range().most, mass, shared.begin(), shared.end(), shared.store_mass());
    shared.sum_terms(x, e);
  }
  if (step == 2) {
    const CrossEntropySums<A, kSpread> row{shared.stats(), hot, shared.hot_x(),
                                           kSpread ? shared.stored_mass() : Sums<A, 2>{}};
    if (shared.first()) *loss = row.loss(row.stats.log_d());
    if (grad != nullptr) cross_entropy_write(row, e, grad, mass, factor, shared.begin(), shared.end());
  }
}

template <class T>
void zero_row(T* row, int64_t n) {
  __builtin_memset(row, 0, static_cast<size_t>(n) * sizeof(T));
}

}  // namespace
}  // namespace softkern::cpu
