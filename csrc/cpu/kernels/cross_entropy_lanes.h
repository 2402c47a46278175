// SPDX-License-Identifier: Apache-2.0
// cross_entropy of rows a lane each; formulas and names of cross_entropy.h.
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

// The mass that a class has in all rows, or in a row each: what UniformMass, WeightMass and ProbabilityMass
// are to a row.
template <class T>
struct LaneMass {
  using A = Compute<T>;
  const T* weight;
  A share;  // s/C
  SK_INLINE typename Simd<A>::Reg of(int64_t c) const {
    return Simd<A>::broadcast(weight == nullptr ? share : share * widen(weight[c]));
  }
};

template <class T>
struct LaneProbabilityMass {
  using A = Compute<T>;
  using S = Simd<A>;
  const T* weight;
  const typename S::Reg* probability;
  A keep, share;  // 1 - s, s/C
  SK_INLINE typename S::Reg of(int64_t c) const {
    const auto t = S::fma(probability[c], S::broadcast(keep), S::broadcast(share));
    return weight == nullptr ? t : S::mul(t, S::broadcast(widen(weight[c])));
  }
};

/// Losses of a block with the target masses hot.mass (at the index) and mass (of all classes). With
/// need_grad, x becomes the gradient times factor; e is memory for a block.
template <class A, class Order, bool kHot, class Mass>
SK_CALL typename Simd<A>::Reg cross_entropy_block(typename Simd<A>::Reg* x, typename Simd<A>::Reg* e,
                                                  const Mass& mass, const LaneTargets<A>& hot,
                                                  int64_t classes, bool need_grad, A grad_factor) {
  using S = Simd<A>;
  using Reg = typename S::Reg;
  constexpr bool kSpread = !__is_same(Mass, NoMass);
  const Reg zero = S::broadcast(0);
  const LaneStats<A, Order> stats = lane_stats<A, Order>(x, need_grad ? e : nullptr, classes);  // 1, 2
  const Reg log_d = stats.log_d();
  Reg loss = zero, hot_x = zero;
  if constexpr (kHot) {
    hot_x = pick<A>(x, hot);
    loss = S::mul(hot.mass, S::add(S::sub(stats.m, hot_x), log_d));
  }
  Reg spread = zero;
  if constexpr (kSpread) {
    Reg sums[2];  // of masses and of their costs
    Order::sum(classes, sums, [&](Reg* acc, int64_t c) __attribute__((always_inline)) {
      const Reg a = mass.of(c);
      acc[0] = S::add(acc[0], a);
      acc[1] = S::fma(a, S::sub(stats.m, x[c]), acc[1]);
    });
    spread = sums[0];
    loss = S::add(loss, S::add(sums[1], S::mul(spread, log_d)));
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
    const Reg p = S::div(pick<A>(e, hot), sum);
    // Where the true class alone is the maximum, p - 1 is taken from the other classes: it keeps its digits.
    const Reg others = S::sub(zero, S::div(stats.rest, sum));
    const Reg alone = S::if_equal(hot_x, stats.m, stats.ties, zero);
    const Reg off = S::if_equal(alone, S::broadcast(1), others, S::sub(p, S::broadcast(1)));
    hot_grad = S::mul(factor, S::add(S::mul(hot.mass, off), S::mul(spread, p)));
  }
  Reg here = zero;
  for (int64_t c = 0; c < classes; ++c) {  // 3 write
    Reg v, own = hot_grad;
    if constexpr (kSpread) {
      const Reg minus_mass = S::mul(S::broadcast(-grad_factor), mass.of(c));
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

template <class T, class Order>
class CrossEntropyLanes {
  using A = Compute<T>;
  using S = Simd<A>;
  using Reg = typename S::Reg;
  static constexpr int L = S::kLanes;

 public:
  CrossEntropyLanes(const CrossEntropyArgs& a, const Range& range)
      : a_(a),
        range_(range),
        classes_(a.shape.classes),
        weight_(static_cast<const T*>(a.weight)),
        logits_(a.logits, a.shape, range),
        probabilities_(a.probabilities, a.shape, range),
        grad_(a.grad, a.shape, range, a.stream),
        keep_(static_cast<A>(1 - a.options.label_smoothing)),
        share_(static_cast<A>(a.options.label_smoothing / static_cast<double>(a.shape.classes))) {}

  template <class Tiles>
  void run(Tiles& tiles) {
    const LaneTile<A> x = tiles.first(), t = tiles.second();
    Reg* const e = tiles.block();
    for_each_group<A>(a_.shape, range_, tiles.blocks(), [&](const LaneBlock* blocks, int count) {
      logits_.load(blocks, count, x);
      if (probabilities_.given()) probabilities_.load(blocks, count, t);
      for (int b = 0; b < count; ++b) put(blocks[b], losses(blocks[b], x[b], t[b], e));
      if (grad_.given()) grad_.store(blocks, count, x);
    });
  }

 private:
  SK_INLINE Reg losses(const LaneBlock& block, Reg* x, const Reg* t, Reg* e) const {
    if (probabilities_.given()) {
      const LaneProbabilityMass<T> mass{weight_, t, keep_, share_};
      return call<false>(x, e, mass, {S::broadcast(-1), S::broadcast(0), {}, true});
    }
    if (share_ == 0) return call<true>(x, e, NoMass{}, find(block));
    return call<true>(x, e, LaneMass<T>{weight_, share_}, find(block));
  }
  template <bool kHot, class Mass>
  SK_INLINE Reg call(Reg* x, Reg* e, const Mass& mass, const LaneTargets<A>& hot) const {
    return cross_entropy_block<A, Order, kHot>(x, e, mass, hot, classes_, grad_.given(),
                                               static_cast<A>(a_.grad_factor));
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
    if (weight_ != nullptr) {
      for (int l = 0; l < L; ++l) mass[l] *= widen(weight_[hot.place[l] / L]);
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
  const int64_t classes_;
  const T* const weight_;
  const LaneOperand<T> logits_, probabilities_, grad_;
  const A keep_, share_;
};

}  // namespace
}  // namespace softkern::cpu
