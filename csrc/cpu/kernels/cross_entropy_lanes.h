// SPDX-License-Identifier: Apache-2.0
// cross_entropy of rows a lane each; formulas and names of cross_entropy.h.
#pragma once

#include "cross_entropy.h"
#include "lanes.h"

namespace softkern::cpu {
namespace {

/// The targets of a block's rows. Numbers and not vectors: they are written one by one, and read as a vector
/// when that is long done. Ignored rows and lanes without a row have no mass.
template <class A>
struct LaneTargets {
  static constexpr int L = Simd<A>::kLanes;
  int32_t place[L];  // of the target's element among those of the block; of some element if ignored
  A mass[L];
  A spread[L];   // the target's part of the mass that every class has
  A ignored[L];  // 1 where it is; not set where all count
  A x[L];        // the target's logit
  A e[L];        // and its term, later its gradient
  bool all_count;
};

// The mass that a class has in all rows, or in a row each: what UniformMass, WeightMass and ProbabilityMass
// are to a row.
template <class T>
struct LaneMass {
  using A = Compute<T>;
  const T* weight;
  A share;  // s/C
  SK_INLINE typename Simd<A>::Reg of(int, int64_t c) const {
    return Simd<A>::broadcast(weight == nullptr ? share : share * widen(weight[c]));
  }
};

template <class T>
struct LaneProbabilityMass {
  using A = Compute<T>;
  using S = Simd<A>;
  const T* weight;
  LaneTile<A> probability;
  A keep, share;  // 1 - s, s/C
  SK_INLINE typename S::Reg of(int b, int64_t c) const {
    const auto t = S::fma(probability[b][c], S::broadcast(keep), S::broadcast(share));
    return weight == nullptr ? t : S::mul(t, S::broadcast(widen(weight[c])));
  }
};

/// Losses of blocks with the target masses hot[b].mass (at the index), where kHot, and mass (of all classes).
/// With need_grad, x becomes the gradient times factor.
template <class A, class Order, bool kHot, class Mass>
SK_CALL void cross_entropy_blocks(const LaneTile<A>& x, const Mass& mass, LaneTargets<A>* hot, int count,
                                  int64_t classes, bool need_grad, A grad_factor,
                                  typename Simd<A>::Reg* loss) {
  using S = Simd<A>;
  using Reg = typename S::Reg;
  constexpr bool kSpread = !__is_same(Mass, NoMass);
  constexpr int L = S::kLanes;
  const Reg zero = S::broadcast(0);
  LaneStats<A, Order> stats[kBlocksAtOnce];
  Reg spread[kBlocksAtOnce][2];  // sums of masses and of their costs
  if constexpr (kHot) {
    for (int b = 0; b < count; ++b) {
      for (int l = 0; l < L; ++l) {
        const char* const from = reinterpret_cast<const char*>(x[b]) + hot[b].place[l] * sizeof(A);
        __builtin_memcpy(hot[b].x + l, from, sizeof(A));
        __builtin_memcpy(hot[b].e + l, from, sizeof(A));
      }
    }
  }
  lane_range(x, count, classes, stats);  // 1 max
  if constexpr (kSpread) {
    for (int b = 0; b < count; ++b) {
      Order::sum(classes, spread[b], [&](Reg* acc, int64_t c) __attribute__((always_inline)) {
        const Reg a = mass.of(b, c);
        acc[0] = S::add(acc[0], a);
        acc[1] = S::fma(a, S::sub(stats[b].m, x[b][c]), acc[1]);
      });
    }
  }
  lane_sums(x, need_grad, count, classes, stats, [&](int b) { return kHot ? hot[b].e : nullptr; });  // 2

  const Reg factor = S::broadcast(grad_factor);
  Reg scale[kBlocksAtOnce];
  for (int b = 0; b < count; ++b) {
    const LaneStats<A, Order>& of = stats[b];
    const bool ignore = kHot && !hot[b].all_count;
    const Reg log_d = of.log_d();
    Reg own = zero, hot_x = zero, spread_mass = zero, losses = zero;
    if constexpr (kHot) {
      own = S::load(hot[b].mass);
      hot_x = S::load(hot[b].x);
      losses = S::mul(own, S::add(S::sub(of.m, hot_x), log_d));
    }
    if constexpr (kSpread) {
      spread_mass = spread[b][0];
      losses = S::add(losses, S::add(spread[b][1], S::mul(spread_mass, log_d)));
    }
    // Exact zeros for ignored rows, whatever their logits: 0 * NaN would spread the NaN of a padded row.
    if (ignore) losses = S::if_less(zero, S::load(hot[b].ignored), zero, losses);
    loss[b] = losses;
    if (!need_grad) continue;

    const Reg sum = of.sum();
    scale[b] = S::div(S::mul(factor, S::add(own, spread_mass)), sum);
    if constexpr (kHot) {
      const Reg p = S::div(S::load(hot[b].e), sum);
      // Where the true class alone is the maximum, p - 1 is taken from the other classes: it keeps its digits.
      const Reg others = S::sub(zero, S::div(of.rest, sum));
      const Reg alone = S::if_equal(hot_x, of.m, of.ties, zero);
      const Reg off = S::if_equal(alone, S::broadcast(1), others, S::sub(p, S::broadcast(1)));
      Reg gradient = S::mul(factor, S::add(S::mul(own, off), S::mul(spread_mass, p)));
      if constexpr (kSpread) {
        gradient = S::add(gradient, S::mul(S::broadcast(-grad_factor), S::load(hot[b].spread)));
      }
      if (ignore) gradient = S::if_less(zero, S::load(hot[b].ignored), zero, gradient);
      S::store(hot[b].e, gradient);
    }
  }
  if (!need_grad) return;

  for (int b = 0; b < count; ++b) {  // 3 write
    const bool ignore = kHot && !hot[b].all_count;
    const Reg ignored = ignore ? S::load(hot[b].ignored) : zero;
    for (int64_t c = 0; c < classes; ++c) {
      Reg v;
      if constexpr (kSpread) {
        v = S::fma(x[b][c], scale[b], S::mul(S::broadcast(-grad_factor), mass.of(b, c)));
      } else {
        v = S::mul(x[b][c], scale[b]);
      }
      x[b][c] = ignore ? S::if_less(zero, ignored, zero, v) : v;
    }
  }
  if constexpr (kHot) {
    for (int b = 0; b < count; ++b) {
      for (int l = 0; l < L; ++l) {
        __builtin_memcpy(reinterpret_cast<char*>(x[b]) + hot[b].place[l] * sizeof(A), hot[b].e + l, sizeof(A));
      }
    }
  }
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
    for_each_group<A>(a_.shape, range_, tiles.blocks(), [&](const LaneBlock* blocks, int count) {
      logits_.load(blocks, count, x);
      if (probabilities_.given()) probabilities_.load(blocks, count, t);
      for_each_batch(count, [&](int first, int some) {
        compute(blocks + first, {x[first], x.pitch}, {t[first], t.pitch}, some);
      });
      if (grad_.given()) grad_.store(blocks, count, x);
    });
  }

 private:
  SK_INLINE void compute(const LaneBlock* blocks, const LaneTile<A>& x, const LaneTile<A>& t,
                         int count) const {
    LaneTargets<A> hot[kBlocksAtOnce];
    Reg loss[kBlocksAtOnce];
    if (probabilities_.given()) {
      call<false>(x, LaneProbabilityMass<T>{weight_, t, keep_, share_}, hot, count, loss);
    } else {
      for (int b = 0; b < count; ++b) find(blocks[b], hot[b]);
      if (share_ == 0) {
        call<true>(x, NoMass{}, hot, count, loss);
      } else {
        call<true>(x, LaneMass<T>{weight_, share_}, hot, count, loss);
      }
    }
    for (int b = 0; b < count; ++b) put(blocks[b], loss[b]);
  }
  template <bool kHot, class Mass>
  SK_INLINE void call(const LaneTile<A>& x, const Mass& mass, LaneTargets<A>* hot, int count,
                      Reg* loss) const {
    cross_entropy_blocks<A, Order, kHot>(x, mass, hot, count, classes_, grad_.given(),
                                         static_cast<A>(a_.grad_factor), loss);
  }
  SK_INLINE void find(const LaneBlock& block, LaneTargets<A>& hot) const {
    const int64_t* target = a_.target + block.first;
    int64_t ignored = block.count < L;
    for (int l = 0; l < block.count; ++l) ignored += target[l] == a_.options.ignore_index;
    hot.all_count = ignored == 0;
    if (hot.all_count) {
      for (int l = 0; l < L; ++l) {
        hot.place[l] = static_cast<int32_t>(target[l]) * L + l;
        hot.mass[l] = keep_;
      }
    } else {
      for (int l = 0; l < L; ++l) {
        const bool counts = l < block.count && target[l] != a_.options.ignore_index;
        hot.place[l] = (counts ? static_cast<int32_t>(target[l]) : 0) * L + l;
        hot.mass[l] = counts ? keep_ : A(0);
        hot.ignored[l] = counts ? A(0) : A(1);
      }
    }
    for (int l = 0; l < L; ++l) hot.spread[l] = share_;
    if (weight_ != nullptr) {
      for (int l = 0; l < L; ++l) {
        const A weight = widen(weight_[hot.place[l] / L]);
        hot.mass[l] *= weight;
        hot.spread[l] *= weight;
      }
    }
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
