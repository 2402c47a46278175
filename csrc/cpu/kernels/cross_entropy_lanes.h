// SPDX-License-Identifier: Apache-2.0
// cross_entropy of rows of few classes, a row a lane; formulas and names of cross_entropy.h.
#pragma once

#include "cross_entropy.h"
#include "lanes.h"

namespace softkern::cpu {
namespace {

/// The targets of a block, in lanes. Ignored rows and lanes without a row: index -1, mass 0.
template <class A>
struct LaneTargets {
  typename Simd<A>::Reg index, mass;
  int32_t
      place[Simd<A>::kLanes];  // of the target's element among those of a block; of some element if ignored
  bool all_count;
};

/// The targets' elements of a block.
template <class A>
SK_INLINE typename Simd<A>::Reg pick(const typename Simd<A>::Reg* x, const LaneTargets<A>& hot) {
  A lanes[Simd<A>::kLanes];
  for (int l = 0; l < Simd<A>::kLanes; ++l) {
    __builtin_memcpy(lanes + l, reinterpret_cast<const char*>(x) + hot.place[l] * sizeof(A), sizeof(A));
  }
  return Simd<A>::load(lanes);
}

/// Losses of a block with the target masses targets.mass (at the index) and mass (of all classes). With
/// need_grad, x becomes the gradient times factor.
template <class A, bool kHot, bool kSpread>
SK_CALL typename Simd<A>::Reg cross_entropy_block(typename Simd<A>::Reg* x, const typename Simd<A>::Reg* mass,
                                                  const LaneTargets<A>& hot, int classes, bool need_grad,
                                                  A grad_factor) {
  using S = Simd<A>;
  using Reg = typename S::Reg;
  const Reg zero = S::broadcast(0);
  Reg e[kLaneClasses];
  const LaneStats<A> stats = lane_stats<A>(x, e, classes);  // 1 max, 2 sum-exp
  const Reg log_d = stats.log_d();
  Reg loss = zero, hot_x = zero, hot_e = zero;
  if constexpr (kHot) {
    hot_x = pick<A>(x, hot);
    hot_e = pick<A>(e, hot);
    loss = S::mul(hot.mass, S::add(S::sub(stats.m, hot_x), log_d));
  }
  Reg spread = zero;
  if constexpr (kSpread) {
    Accumulators<A> masses, costs;
    for_each_class(classes, [&](auto slot, int c) __attribute__((always_inline)) {
      masses.add(slot, mass[c]);
      costs.add_product(slot, mass[c], S::sub(stats.m, x[c]));
    });
    spread = masses.lane_sum();
    loss = S::add(loss, S::add(costs.lane_sum(), S::mul(spread, log_d)));
  }
  // Exact zeros for ignored rows, whatever their logits: 0 * NaN would spread the NaN of a padded row.
  const bool ignore = kHot && !hot.all_count;
  if (ignore) loss = S::if_less(hot.index, zero, zero, loss);
  if (!need_grad) return loss;

  const Reg factor = S::broadcast(grad_factor);
  const Reg sum = stats.sum();
  const Reg scale = S::div(S::mul(factor, S::add(hot.mass, spread)), sum);
  Reg hot_grad = zero;
  if constexpr (kHot) {
    const Reg p = S::div(hot_e, sum);
    // Where the true class alone is the maximum, p - 1 is taken from the other classes: it keeps its digits.
    const Reg others = S::sub(zero, S::div(stats.rest, sum));
    const Reg alone = S::if_equal(hot_x, stats.m, stats.ties, zero);
    const Reg off = S::if_equal(alone, S::broadcast(1), others, S::sub(p, S::broadcast(1)));
    hot_grad = S::mul(factor, S::fma(hot.mass, off, S::mul(spread, p)));
  }
  Reg here = zero;
  for (int c = 0; c < classes; ++c) {  // 3 write
    Reg v, own = hot_grad;
    if constexpr (kSpread) {
      const Reg minus_mass = S::mul(S::broadcast(-grad_factor), mass[c]);
      v = S::fma(e[c], scale, minus_mass);
      own = S::add(hot_grad, minus_mass);
    } else {
      v = S::mul(e[c], scale);
    }
    if constexpr (kHot) v = S::if_equal(hot.index, here, own, v);
    here = S::add(here, S::broadcast(1));
    x[c] = ignore ? S::if_less(hot.index, zero, zero, v) : v;
  }
  return loss;
}

template <class T>
class CrossEntropyLanes {
  using A = Compute<T>;
  using S = Simd<A>;
  using Reg = typename S::Reg;
  static constexpr int L = S::kLanes;

 public:
  CrossEntropyLanes(const CrossEntropyArgs& a, const Range& range)
      : a_(a),
        range_(range),
        classes_(static_cast<int>(a.shape.classes)),
        logits_(a.logits, a.shape, range),
        probabilities_(a.probabilities, a.shape, range),
        grad_(a.grad, a.shape, range),
        keep_(static_cast<A>(1 - a.options.label_smoothing)),
        share_(static_cast<A>(a.options.label_smoothing / static_cast<double>(a.shape.classes))) {
    for (int c = 0; c < classes_; ++c) {
      weight_[c] = a.weight == nullptr ? A(1) : widen(static_cast<const T*>(a.weight)[c]);
    }
  }

  void run() {
    LaneGroup<A> x, t;
    Reg mass[kLaneClasses];
    for (int c = 0; c < classes_; ++c) mass[c] = S::broadcast(share_ * weight_[c]);
    for_each_group<A>(a_.shape, range_, [&](const LaneBlock* blocks, int count) {
      logits_.load(blocks, count, x);
      if (probabilities_.given()) probabilities_.load(blocks, count, t);
      for (int b = 0; b < count; ++b) {
        put(blocks[b], probabilities_.given() ? with_probabilities(x[b], t[b])
                       : share_ == 0          ? call<true, false>(x[b], mass, find(blocks[b]))
                                              : call<true, true>(x[b], mass, find(blocks[b])));
      }
      if (grad_.given()) grad_.store(blocks, count, x);
    });
  }

 private:
  template <bool kHot, bool kSpread>
  SK_INLINE Reg call(Reg* x, const Reg* mass, const LaneTargets<A>& hot) const {
    return cross_entropy_block<A, kHot, kSpread>(x, mass, hot, classes_, grad_.given(),
                                                 static_cast<A>(a_.grad_factor));
  }
  /// t: the probabilities, which become masses.
  SK_INLINE Reg with_probabilities(Reg* x, Reg* t) const {
    for (int c = 0; c < classes_; ++c) {
      const Reg kept = S::fma(t[c], S::broadcast(keep_), S::broadcast(share_));
      t[c] = a_.weight == nullptr ? kept : S::mul(kept, S::broadcast(weight_[c]));
    }
    return call<false, true>(x, t, {S::broadcast(-1), S::broadcast(0), {}, true});
  }
  SK_INLINE LaneTargets<A> find(const LaneBlock& block) const {
    const int64_t* target = a_.target + block.first;
    LaneTargets<A> hot;
    A index[L], mass[L];
    int64_t ignored = block.count < L;
    for (int l = 0; l < block.count; ++l) ignored += target[l] == a_.options.ignore_index;
    hot.all_count = ignored == 0;
    if (hot.all_count) {
      for (int l = 0; l < L; ++l) {
        const int32_t y = static_cast<int32_t>(target[l]);
        index[l] = static_cast<A>(y);
        hot.place[l] = y * L + l;
        mass[l] = keep_;
      }
    } else {
      for (int l = 0; l < L; ++l) {
        const bool counts = l < block.count && target[l] != a_.options.ignore_index;
        const int32_t y = counts ? static_cast<int32_t>(target[l]) : 0;
        index[l] = counts ? static_cast<A>(y) : A(-1);
        hot.place[l] = y * L + l;
        mass[l] = counts ? keep_ : A(0);
      }
    }
    if (a_.weight != nullptr) {
      for (int l = 0; l < L; ++l) mass[l] *= weight_[hot.place[l] / L];
    }
    hot.index = S::load(index);
    hot.mass = S::load(mass);
    return hot;
  }
  SK_INLINE void put(const LaneBlock& block, const Reg& loss) const {
    A* losses = static_cast<A*>(a_.loss) + block.first;
    if (block.count == L) {
      S::store(losses, loss);
    } else {
      S::store(losses, loss, block.count);
    }
  }

  const CrossEntropyArgs& a_;
  const Range range_;
  const int classes_;
  const LaneOperand<T> logits_, probabilities_, grad_;
  const A keep_, share_;
  A weight_[kLaneClasses];
};

}  // namespace
}  // namespace softkern::cpu
