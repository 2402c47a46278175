// SPDX-License-Identifier: Apache-2.0
// cross_entropy with one row per lane. The formulas and names are those of cross_entropy.h.
#pragma once

#include "cross_entropy.h"
#include "../lanes/load.h"
#include "../lanes/store.h"

namespace softkern::cpu {
namespace {

/// The targets of blocks of rows, as arrays of numbers, not as vectors: the logits of the targets are picked
/// one by one, and the arrays are read as vectors much later, when these stores have completed. Ignored rows
/// and lanes without a row have index -1 and mass 0.
template <class A>
struct LaneTargets {
  static constexpr int L = Simd<A>::kLanes, kRows = kMostLaneBlocks * L;
  alignas(64) A index[kRows], mass[kRows];
  alignas(64) A x[kRows], e[kRows];  // the logit of the target, and its term
  int32_t place[kRows];              // position of the target's element in its block; any element if ignored
};

/// The numbers that turn a block's terms into gradients.
template <class A>
struct LaneGradient {
  typename Simd<A>::Reg scale, hot;
};

// The mass of a class: LaneMass if it is the same in all rows, LaneProbabilityMass if each row has its own.
// For whole rows, UniformMass, WeightMass and ProbabilityMass do the same.
template <class T>
struct LaneMass {
  using A = Compute<T>;
  using L = OneLane<A>;
  const T* weight;
  MassNumbers<A> numbers;
  SK_INLINE typename Simd<A>::Reg of(int, int64_t c) const {
    const A mass = uniform_mass<L>(numbers);
    return Simd<A>::broadcast(weight == nullptr ? mass : weighted<L>(mass, widen(weight[c])));
  }
};

template <class T>
struct LaneProbabilityMass {
  using A = Compute<T>;
  using S = Simd<A>;
  const T* weight;
  LaneTile<A> probability;
  MassNumbers<A> numbers;
  SK_INLINE typename S::Reg of(int b, int64_t c) const {
    const auto mass = probability_mass<S>(numbers, probability[b][c]);
    return weight == nullptr ? mass : weighted<S>(mass, S::broadcast(widen(weight[c])));
  }
};

/// Computes the losses of blocks. The target mass is hot.mass at the index (with kHot) plus `mass` of all
/// classes. With need_grad, the terms for the gradient replace x.
template <class A, class Order, bool kHot, class Mass>
SK_CALL void cross_entropy_blocks(const LaneTile<A> x, const LaneRange<A>* range, const Mass& mass,
                                  LaneTargets<A>& hot, int count, int64_t classes, bool need_grad,
                                  A grad_factor, const Ahead& ahead, LaneGradient<A>* gradient,
                                  typename Simd<A>::Reg* loss) {
  using S = Simd<A>;
  using F = Lanes<A>;  // the trait for the formulas of common/
  using Reg = typename S::Reg;
  constexpr bool kSpread = !__is_same(Mass, NoMass);
  constexpr int L = S::kLanes;
  const Reg zero = S::broadcast(0);
  LaneStats<A, Order> stats[kMostLaneBlocks];
  Reg spread[kMostLaneBlocks][2];  // sums of a_c and of a_c (m - x_c)
  for (int b = 0; b < count; ++b) {
    const Reg* const of = x[b];
    if constexpr (kHot) {
      for (int i = b * L; i < (b + 1) * L; ++i) {
        A own;
        __builtin_memcpy(&own, reinterpret_cast<const char*>(of) + hot.place[i] * sizeof(A), sizeof(A));
        hot.x[i] = hot.e[i] = own;
      }
    }
    if constexpr (kSpread) {
      const Reg m = S::add(range[b].most, zero);
      Order::sum(classes, spread[b], [&](Reg* acc, int64_t c) __attribute__((always_inline)) {
        const Reg a = mass.of(b, c);
        acc[0] = S::add(acc[0], a);
        acc[1] = S::fma(a, S::sub(m, of[c]), acc[1]);
      });
    }
  }
  lane_sums(x, need_grad, count, classes, range, stats, ahead, [&](int b) __attribute__((always_inline)) {
    return kHot && need_grad ? hot.e + b * L : nullptr;
  });  // 2 sum-exp

  const Reg factor = S::broadcast(grad_factor);
  for (int b = 0; b < count; ++b) {
    const LaneStats<A, Order>& of = stats[b];
    const Reg log_d = of.log_d();
    Reg index = zero, own = zero, hot_x = zero, spread_mass = zero;
    loss[b] = zero;
    if constexpr (kHot) {
      index = S::load(hot.index + b * L);
      own = S::load(hot.mass + b * L);
      hot_x = S::load(hot.x + b * L);
      loss[b] = hot_loss<F>(own, S::sub(of.m, hot_x), log_d);
    }
    if constexpr (kSpread) {
      spread_mass = spread[b][0];
      loss[b] = S::add(loss[b], spread_loss<F>(spread_mass, spread[b][1], log_d));
    }
    // Ignored rows get exact zeros, whatever their logits: 0 * NaN would spread the NaN of a padded row.
    if constexpr (kHot) loss[b] = S::if_less(index, zero, zero, loss[b]);
    if (!need_grad) continue;

    const Reg sum = of.sum();
    gradient[b].scale = gradient_scale<F>(factor, own, spread_mass, sum);
    if constexpr (kHot) {
      const Reg e = S::load(hot.e + b * L);
      gradient[b].hot = hot_gradient<F>(factor, own, spread_mass, hot_x, e, of.m, of.ties, of.rest, sum);
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
        grad_(a.grad, a.shape, a.stream),
        numbers_(mass_numbers<A>(a.options, a.shape.classes)) {}

  template <class Tiles>
  void run(Tiles& tiles) {
    const LaneTile<A> x = tiles.first(), t = tiles.second();
    for_each_group<A>(a_.shape, range_, tiles.blocks(), [&](const LaneBlock* blocks, int count) {
      LaneRange<A> range[kMostLaneBlocks];
      LaneTargets<A> hot;
      logits_.load(blocks, count, x, range);  // 1 max
      if (probabilities_.given()) {
        probabilities_.load(blocks, count, t);
        compute<false>(blocks, count, x, range, LaneProbabilityMass<T>{weight_, t, numbers_}, hot);
        return;
      }
      const int64_t first = blocks->first, end = blocks[count - 1].first + blocks[count - 1].count;
      find(first, static_cast<int>(end - first), count, hot);
      if (numbers_.share == 0) {
        compute<true>(blocks, count, x, range, NoMass{}, hot);
      } else {
        compute<true>(blocks, count, x, range, LaneMass<T>{weight_, numbers_}, hot);
      }
    });
  }

 private:
  template <bool kHot, class Mass>
  SK_INLINE void compute(const LaneBlock* blocks, int count, const LaneTile<A>& x, const LaneRange<A>* range,
                         const Mass& mass, LaneTargets<A>& hot) const {
    const A factor = static_cast<A>(a_.grad_factor);
    LaneGradient<A> gradient[kMostLaneBlocks];
    Reg loss[kMostLaneBlocks];
    cross_entropy_blocks<A, Order, kHot>(x, range, mass, hot, count, classes_, grad_.given(), factor,
                                         logits_.ahead(blocks, count, x.data), gradient, loss);
    for (int b = 0; b < count; ++b) put(blocks[b], loss[b]);
    if (!grad_.given()) return;
    grad_.store(blocks, count, x, [&](int b, auto body) __attribute__((always_inline)) {  // 3 write
      const Reg* const e = x[b];
      const Reg zero = S::broadcast(0), scale = gradient[b].scale;
      Reg index = zero, hot_grad = zero;
      if constexpr (kHot) {
        index = S::load(hot.index + b * L);
        hot_grad = gradient[b].hot;
      }
      const bool ignore = kHot && !S::all_at_least(index, zero);
      body([&](int c) __attribute__((always_inline)) {
        Reg v, own = hot_grad;
        if constexpr (__is_same(Mass, NoMass)) {
          v = S::mul(e[c], scale);
        } else {
          const Reg minus_mass = S::mul(S::broadcast(-factor), mass.of(b, c));
          v = S::fma(e[c], scale, minus_mass);
          own = S::add(hot_grad, minus_mass);
        }
        if constexpr (kHot) v = S::if_equal(index, S::broadcast(static_cast<A>(c)), own, v);
        return ignore ? S::if_less(index, zero, zero, v) : v;
      });
    });
  }
  SK_INLINE void find(int64_t first, int count, int blocks, LaneTargets<A>& hot) const {
    const int64_t* const target = a_.target + first;
    const int64_t ignore = a_.options.ignore_index;
    // Local copies: the compiler must assume that the stores may change this object, and then would not
    // vectorise the loop.
    const A keep = hot_mass<OneLane<A>>(numbers_);
    A* const __restrict index = hot.index, * const __restrict mass = hot.mass;
    int32_t* const __restrict place = hot.place;
    // Prefetch the next targets: among the many streams of the logits, the hardware prefetcher loses track of
    // this one.
    constexpr int kLine = 64 / sizeof(*target);
    for (int i = 0; i < count; i += kLine) __builtin_prefetch(target + count + i);
    for (int i = 0; i < count; ++i) {
      const bool counts = target[i] != ignore;
      const int32_t y = counts ? static_cast<int32_t>(target[i]) : 0;
      index[i] = counts ? static_cast<A>(y) : A(-1);
      mass[i] = counts ? keep : A(0);
      place[i] = y * L + i % L;
    }
    for (int i = count; i < blocks * L; ++i) {
      index[i] = -1;
      mass[i] = 0;
      place[i] = i % L;
    }
    if (const T* const weight = weight_; weight != nullptr) {
      for (int i = 0; i < blocks * L; ++i) mass[i] *= widen(weight[place[i] / L]);
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
  const LaneInput<T> logits_, probabilities_;
  const LaneOutput<T> grad_;
  const MassNumbers<A> numbers_;
};

}  // namespace
}  // namespace softkern::cpu
