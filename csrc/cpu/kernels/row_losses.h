// SPDX-License-Identifier: Apache-2.0
// row_losses: the steps of a row. The formulas and names are those of common/row_losses.h.
#pragma once

#include "../../common/row_losses.h"
#include "cross_entropy.h"

namespace softkern::cpu {
namespace {

/// The spread mass of every class. Whether there are weights or probabilities is decided for each vector, to
/// compile one kernel for all.
template <class T>
struct AnyMass {
  using A = Compute<T>;
  const T* weight;
  const T* probability;
  const T* next;
  MassNumbers<A> numbers;
  template <class At>
  SK_INLINE auto load(const At& at, int64_t i) const {
    using S = Simd<A>;
    const auto mass = probability == nullptr ? uniform_mass<S>(numbers)
                                             : probability_mass<S>(numbers, at.load(probability + i, 0));
    return weight == nullptr ? mass : weighted<S>(mass, at.load(weight + i, 0));
  }
  SK_INLINE void fetch_next(int64_t i) const {
    if (next != nullptr) __builtin_prefetch(next + i);
  }
};

/// As Following, for a row that need not have the type of the row whose terms are summed.
template <class T>
class Prefetching {
 public:
  explicit SK_INLINE Prefetching(const T* row) : row_(row) {}
  SK_INLINE void four(int64_t i) {
    constexpr int64_t kLine = 64 / sizeof(T);
    if (row_ == nullptr) return;
    for (int64_t k = 0; k < 4 * Simd<Compute<T>>::kLanes; k += kLine) __builtin_prefetch(row_ + i + k);
  }
  template <class At>
  SK_INLINE void one(const At&, int64_t i) {
    if (row_ != nullptr) __builtin_prefetch(row_ + i);
  }

 private:
  const T* row_;
};

/// z = transformed(x), and its range.
template <class T>
SK_CALL RowRange<Compute<T>> transform_row(const LogitNumbers<Compute<T>>& numbers, const T* x, Compute<T>* z,
                                           int64_t n) {
  using A = Compute<T>;
  const A inf = __builtin_inf();
  using S = Simd<A>;
  Accumulators<A> most(-inf), least(inf);
  const auto inner = S::broadcast(numbers.inner), outer = S::broadcast(numbers.outer);
  const auto small = S::broadcast(TanhConstants<A>::kSmall * A(0.999));
  const auto transform = [&](const auto& v) __attribute__((always_inline)) {
    if (!numbers.capped && numbers.outer > 0) return S::mul(outer, v);  // -inf stays -inf
    // The same bits with half of the work, for most vectors of most rows.
    const auto u = S::mul(inner, v);
    if (S::all_at_least(small, Lanes<A>::abs(u))) return S::mul(outer, tanh_small<S>(u));
    return transformed<Lanes<A>>(numbers, v);
  };
  for_each_vector<A>(n, [&](auto slot, auto at, int64_t i) __attribute__((always_inline)) {
    const auto v = transform(at.load(x + i, -inf));
    at.store(z + i, v);
    most.take_max(slot, v);
    if constexpr (decltype(at)::kWhole) {
      least.take_min(slot, v);
    } else {
      least.take_min(slot, at.load(z + i, inf));
    }
  });
  return make_range<A>(least.lane_min(), most.lane_max());
}

/// The first class whose logit is v; -1 if there is none.
template <class A>
SK_CALL int64_t first_equal(const A* z, int64_t n, A v) {
  using S = Simd<A>;
  const auto wanted = S::broadcast(v);
  int64_t i = 0;
  for (; i + S::kLanes <= n; i += S::kLanes) {
    if (S::any_equal(S::load(z + i), wanted)) break;
  }
  for (; i < n; ++i) {
    if (z[i] == v) return i;
  }
  return -1;
}
template <class A>
SK_CALL int64_t first_nan(const A* z, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    if (z[i] != z[i]) return i;
  }
  return -1;
}

/// The numbers of a row from which its results and its gradient are computed.
template <class A>
struct RowNumbers {
  RowStats<A> stats;
  Sums<A, 2> mass;      // sums of the spread mass, and of the spread mass times (m - z)
  A log_d, lse, below;  // below: E, or 0 if nothing depends on it
};

/// dz = e (scale + slope (m - z)) - g a, without the hot parts; times dz/dx unless that depends on z.
template <class A>
struct RowPull {
  A scale, slope, minus_g;
};

/// As stream_vectors, with zeros from element n on: written by themselves, they would wait until their cache
/// lines are loaded again.
template <class A, class T, class Body>
SK_INLINE void stream_valid(T* y, int64_t n, int64_t all, Body body) {
  using S = Simd<A>;
  stream_vectors<A>(y, all, [&](auto at, int64_t i) __attribute__((always_inline)) {
    typename S::Reg v;
    if (__builtin_expect(i + at.size() <= n, 1)) {
      v = body(at, i);
    } else if (i < n) {
      const Tail<A> part{static_cast<int>(n - i)};
      v = part.keep(body(part, i));
    } else {
      v = S::broadcast(0);
    }
    return v;
  });
}

/// 3 write. kFull: the gradient depends on z. `grad` may be e. With `stream`, zeros are written up to
/// `classes`.
template <bool kSpread, bool kFull, class Out, class T>
SK_CALL void row_losses_write(const RowPull<Compute<T>>& pull, const LogitNumbers<Compute<T>>& numbers,
                              const AnyMass<T>& mass, const Compute<T>* e, const Compute<T>* z, Compute<T> m,
                              Out* grad, int64_t n, int64_t classes, int64_t hot, Compute<T> hot_grad,
                              bool stream) {
  using A = Compute<T>;
  using S = Simd<A>;
  const auto scale = S::broadcast(pull.scale), slope = S::broadcast(pull.slope);
  const auto minus_g = S::broadcast(pull.minus_g), vm = S::broadcast(m);
  const auto gradient = [&](auto at, int64_t i) __attribute__((always_inline)) {
    const auto term = at.load(e + i, 0);
    typename S::Reg v;
    if constexpr (kFull) {
      v = term_pull<S>(scale, slope, term, S::sub(vm, at.load(z + i, 0)));
    } else {
      v = S::mul(term, scale);
    }
    if constexpr (kSpread) v = less_mass<Lanes<A>>(v, mass.load(at, i), minus_g);
    if constexpr (kFull) {
      if (numbers.capped) v = S::mul(v, logit_slope<Lanes<A>>(numbers, at.load(z + i, 0)));
    }
    return v;
  };
  if (!stream) {
    store_vectors<A>(grad, n, gradient);
    if (hot >= 0) grad[hot] = Narrow<Out>::from(hot_grad);
    return;
  }
  // As in cross_entropy_write: the hot class is stored with its vector.
  stream_valid<A>(grad, n, classes, [&](auto at, int64_t i) __attribute__((always_inline)) {
    const auto v = gradient(at, i);
    const int64_t lane = hot - i;
    if (lane < 0 || lane >= S::kLanes) return v;
    A lanes[S::kLanes];
    S::store(lanes, v);
    lanes[lane] = hot_grad;
    return S::load(lanes);
  });
}

}  // namespace
}  // namespace softkern::cpu
