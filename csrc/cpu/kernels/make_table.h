// SPDX-License-Identifier: Apache-2.0
// From rows to calls: the functions that an ISA exports.
#pragma once

#include "cross_entropy_lanes.h"
#include "log_softmax.h"
#include "softmax.h"
#include "targets.h"

namespace softkern::cpu {
namespace {

SK_INLINE bool in_lanes(const Shape& shape) { return shape.classes <= kLaneClasses; }
constexpr Ran kLanesRan = {SOFTKERN_ISA, "lanes"}, kRowsRan = {SOFTKERN_ISA, "rows"},
              kTilesRan = {SOFTKERN_ISA, "tiles"};

template <class T, class Row>
SK_INLINE Ran forward(const ForwardArgs& a, const Range& range, Arena arena, Row row) {
  const Operand<T> input(a.input, a.shape, range, arena);
  const Operand<T> output(a.output, a.shape, range, arena, &input);
  for_each_tile<T>(a.shape, range, [&](int64_t first, int64_t count) {
    input.stage(first, count);
    for (int64_t r = first; r < first + count; ++r) {
      row(input.row(r, first), output.row(r, first), input.next(r, range.end));
    }
    output.flush(first, count);
  });
  return is_packed(a.input) || is_packed(a.output) ? kTilesRan : kRowsRan;
}

template <class T, class Lanes>
SK_INLINE Ran forward_lanes(const ForwardArgs& a, const Range& range, Lanes lanes) {
  const LaneOperand<T> input(a.input, a.shape, range), output(a.output, a.shape, range);
  LaneGroup<Compute<T>> x;
  for_each_group<Compute<T>>(a.shape, range, [&](const LaneBlock* blocks, int count) {
    input.load(blocks, count, x);
    for (int b = 0; b < count; ++b) lanes(x[b], blocks[b]);
    output.store(blocks, count, x);
  });
  return kLanesRan;
}

template <class T>
Ran softmax(const ForwardArgs& a, Range range) {
  using A = Compute<T>;
  const int64_t classes = a.shape.classes;
  if (in_lanes(a.shape)) {
    return forward_lanes<T>(a, range, [&](auto* x, const LaneBlock&) __attribute__((always_inline)) {
      softmax_lanes<A>(x, static_cast<int>(classes));
    });
  }
  Arena arena(range.scratch);
  A* scratch = take_compute_row<T>(arena, classes);
  return forward<T>(a, range, arena,
                    [&](const T* x, T* y, const T* next) { softmax_row(x, y, scratch, classes, next); });
}

template <class T>
Ran log_softmax(const ForwardArgs& a, Range range) {
  using A = Compute<T>;
  const int64_t classes = a.shape.classes;
  if (in_lanes(a.shape)) {
    return forward_lanes<T>(a, range, [&](auto* x, const LaneBlock&) __attribute__((always_inline)) {
      typename Simd<A>::Reg e[kLaneClasses];
      log_softmax_lanes<A>(x, e, static_cast<int>(classes));
    });
  }
  return forward<T>(a, range, Arena(range.scratch),
                    [&](const T* x, T* y, const T* next) { log_softmax_row(x, y, classes, next); });
}

template <class T, void (*kRow)(const T*, const T*, T*, int64_t), class Lanes>
SK_INLINE Ran backward(const BackwardArgs& a, const Range& range, Lanes lanes) {
  if (in_lanes(a.shape)) {
    const LaneOperand<T> g(a.grad_output, a.shape, range), y(a.output, a.shape, range);
    const LaneOperand<T> dx(a.grad_input, a.shape, range);
    LaneGroup<Compute<T>> gs, ys;
    for_each_group<Compute<T>>(a.shape, range, [&](const LaneBlock* blocks, int count) {
      g.load(blocks, count, gs);
      y.load(blocks, count, ys);
      for (int b = 0; b < count; ++b) lanes(gs[b], ys[b]);
      dx.store(blocks, count, gs);
    });
    return kLanesRan;
  }
  Arena arena(range.scratch);
  const Operand<T> g(a.grad_output, a.shape, range, arena);
  const Operand<T> y(a.output, a.shape, range, arena);
  const Operand<T> dx(a.grad_input, a.shape, range, arena, &g);
  for_each_tile<T>(a.shape, range, [&](int64_t first, int64_t count) {
    g.stage(first, count);
    y.stage(first, count);
    for (int64_t r = first; r < first + count; ++r) {
      kRow(g.row(r, first), y.row(r, first), dx.row(r, first), a.shape.classes);
    }
    dx.flush(first, count);
  });
  return is_packed(a.grad_output) || is_packed(a.output) || is_packed(a.grad_input) ? kTilesRan : kRowsRan;
}

template <class T>
Ran softmax_backward(const BackwardArgs& a, Range range) {
  return backward<T, &softmax_backward_row<T>>(a, range, [&](auto* g, const auto* y) {
    softmax_backward_lanes<Compute<T>>(g, y, static_cast<int>(a.shape.classes));
  });
}

template <class T>
Ran log_softmax_backward(const BackwardArgs& a, Range range) {
  return backward<T, &log_softmax_backward_row<T>>(a, range, [&](auto* g, const auto* y) {
    log_softmax_backward_lanes<Compute<T>>(g, y, static_cast<int>(a.shape.classes));
  });
}

template <class T>
class CrossEntropy {
  using A = Compute<T>;

 public:
  CrossEntropy(const CrossEntropyArgs& a, const Range& range)
      : a_(a),
        range_(range),
        arena_(range.scratch),
        logits_(a.logits, a.shape, range, arena_),
        probabilities_(a.probabilities, a.shape, range, arena_),
        grad_(a.grad, a.shape, range, arena_, &logits_),
        scratch_(grad_.given() ? take_compute_row<T>(arena_, a.shape.classes) : nullptr),
        weight_(static_cast<const T*>(a.weight)),
        keep_(static_cast<A>(1 - a.options.label_smoothing)),
        share_(static_cast<A>(a.options.label_smoothing / static_cast<double>(a.shape.classes))) {}

  void run() {
    A* loss = static_cast<A*>(a_.loss);
    for_each_tile<T>(a_.shape, range_, [&](int64_t first, int64_t count) {
      logits_.stage(first, count);
      probabilities_.stage(first, count);
      for (int64_t r = first; r < first + count; ++r) {
        next_ = logits_.next(r, range_.end);
        loss[r] = one(r, logits_.row(r, first), grad_.given() ? grad_.row(r, first) : nullptr, first);
      }
      grad_.flush(first, count);
    });
  }

 private:
  A one(int64_t r, const T* x, T* grad, int64_t first) {
    if (a_.target == nullptr) {
      const T* t = probabilities_.row(r, first);
      if (weight_ != nullptr)
        return row(x, grad, ProbabilityMass<T, true>{weight_, t, keep_, share_}, {-1, 0});
      return row(x, grad, ProbabilityMass<T, false>{nullptr, t, keep_, share_}, {-1, 0});
    }
    const int64_t y = a_.target[r];
    if (y == a_.options.ignore_index) {
      // Exact zeros, whatever the logits: 0 * NaN would spread the NaN of a padded row.
      if (grad != nullptr) zero_row(grad, a_.shape.classes);
      return 0;
    }
    const Hot<A> hot{y, keep_ * (weight_ != nullptr ? widen(weight_[y]) : A(1))};
    if (share_ == 0) return row(x, grad, NoMass{}, hot);
    if (weight_ != nullptr) return row(x, grad, WeightMass<T>{weight_, share_}, hot);
    return row(x, grad, UniformMass<A>{share_}, hot);
  }

  template <class Mass>
  A row(const T* x, T* grad, const Mass& mass, Hot<A> hot) {
    return cross_entropy_row(x, mass, hot, grad, static_cast<A>(a_.grad_factor), scratch_, a_.shape.classes,
                             next_);
  }

  const CrossEntropyArgs& a_;
  const Range range_;
  Arena arena_;
  Operand<T> logits_, probabilities_, grad_;
  A* scratch_;
  const T* weight_;
  A keep_, share_;
  const T* next_ = nullptr;
};

template <class T>
Ran cross_entropy(const CrossEntropyArgs& a, Range range) {
  if (in_lanes(a.shape)) {
    CrossEntropyLanes<T>(a, range).run();
    return kLanesRan;
  }
  CrossEntropy<T>(a, range).run();
  return is_packed(a.logits) || is_packed(a.probabilities) || is_packed(a.grad) ? kTilesRan : kRowsRan;
}

// Adding +0 changes -0 alone: zeros stay +0 whatever the factor's sign, as they are in a row of its own.
template <class T>
Ran scale(const ScaleArgs& a, Range range) {
  using A = Compute<T>;
  using S = Simd<A>;
  const auto zero = S::broadcast(0);
  const A* factor = static_cast<const A*>(a.factor);
  if (in_lanes(a.shape)) {
    return forward_lanes<T>({a.shape, a.input, a.output}, range,
                            [&](auto* x, const LaneBlock& block) __attribute__((always_inline)) {
                              A lanes[S::kLanes] = {};
                              for (int l = 0; l < block.count; ++l)
                                lanes[l] = factor[(block.first + l) * a.factor_step];
                              const auto f = S::load(lanes);
                              for (int64_t c = 0; c < a.shape.classes; ++c) x[c] = S::fma(x[c], f, zero);
                            });
  }
  Arena arena(range.scratch);
  const Operand<T> input(a.input, a.shape, range, arena);
  const Operand<T> output(a.output, a.shape, range, arena, &input);
  for_each_tile<T>(a.shape, range, [&](int64_t first, int64_t count) {
    input.stage(first, count);
    for (int64_t r = first; r < first + count; ++r) {
      const T* x = input.row(r, first);
      T* y = output.row(r, first);
      const auto f = S::broadcast(factor[r * a.factor_step]);
      for_each_vector<A>(a.shape.classes, [&](auto, auto at, int64_t i) __attribute__((always_inline)) {
        at.store(y + i, S::fma(at.load(x + i, 0), f, zero));
      });
    }
    output.flush(first, count);
  });
  return is_packed(a.input) || is_packed(a.output) ? kTilesRan : kRowsRan;
}

template <class T>
constexpr Kernels make_kernels() {
  return {&softmax<T>,       &log_softmax<T>, &softmax_backward<T>,   &log_softmax_backward<T>,
          &cross_entropy<T>, &scale<T>,       &sum_losses<Compute<T>>};
}

constexpr KernelTable make_table() {
  return {SOFTKERN_ISA,
          &count_targets,
          {make_kernels<float>(), make_kernels<double>(), make_kernels<BFloat16>(), make_kernels<Half>()}};
}

}  // namespace
}  // namespace softkern::cpu
