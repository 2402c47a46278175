// SPDX-License-Identifier: Apache-2.0
// From rows to calls: the functions that an ISA exports.
#pragma once

#include "cross_entropy.h"
#include "log_softmax.h"
#include "softmax.h"

namespace softkern::cpu {
namespace {

template <class T, class Row>
SK_INLINE void forward(const ForwardArgs& a, Range range, Arena arena, Row row) {
  const Operand<T> input(a.input, a.shape, range, arena);
  const Operand<T> output(a.output, a.shape, range, arena);
  for_each_tile(range, [&](int64_t first, int64_t count) {
    input.stage(first, count);
    for (int64_t r = first; r < first + count; ++r) row(input.row(r, first), output.row(r, first));
    output.flush(first, count);
  });
}

template <class T>
const char* softmax(const ForwardArgs& a, Range range) {
  Arena arena(range.scratch);
  Compute<T>* scratch = take_compute_row<T>(arena, a.shape.classes);
  forward<T>(a, range, arena, [&](const T* x, T* y) { softmax_row(x, y, scratch, a.shape.classes); });
  return SOFTKERN_ISA;
}

template <class T>
const char* log_softmax(const ForwardArgs& a, Range range) {
  forward<T>(a, range, Arena(range.scratch),
             [&](const T* x, T* y) { log_softmax_row(x, y, a.shape.classes); });
  return SOFTKERN_ISA;
}

template <class T, void (*kRow)(const T*, const T*, T*, int64_t)>
const char* backward(const BackwardArgs& a, Range range) {
  Arena arena(range.scratch);
  const Operand<T> g(a.grad_output, a.shape, range, arena);
  const Operand<T> y(a.output, a.shape, range, arena);
  const Operand<T> dx(a.grad_input, a.shape, range, arena);
  for_each_tile(range, [&](int64_t first, int64_t count) {
    g.stage(first, count);
    y.stage(first, count);
    for (int64_t r = first; r < first + count; ++r) {
      kRow(g.row(r, first), y.row(r, first), dx.row(r, first), a.shape.classes);
    }
    dx.flush(first, count);
  });
  return SOFTKERN_ISA;
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
        grad_(a.grad, a.shape, range, arena_),
        scratch_(grad_.given() ? take_compute_row<T>(arena_, a.shape.classes) : nullptr),
        weight_(static_cast<const T*>(a.weight)),
        keep_(static_cast<A>(1 - a.options.label_smoothing)),
        share_(static_cast<A>(a.options.label_smoothing / static_cast<double>(a.shape.classes))) {}

  void run() {
    A* loss = static_cast<A*>(a_.loss);
    for_each_tile(range_, [&](int64_t first, int64_t count) {
      logits_.stage(first, count);
      probabilities_.stage(first, count);
      for (int64_t r = first; r < first + count; ++r) {
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
    return cross_entropy_row(x, mass, hot, grad, static_cast<A>(a_.grad_factor), scratch_, a_.shape.classes);
  }

  const CrossEntropyArgs& a_;
  const Range range_;
  Arena arena_;
  Operand<T> logits_, probabilities_, grad_;
  A* scratch_;
  const T* weight_;
  A keep_, share_;
};

template <class T>
const char* cross_entropy(const CrossEntropyArgs& a, Range range) {
  CrossEntropy<T>(a, range).run();
  return SOFTKERN_ISA;
}

template <class T>
const char* scale(const ScaleArgs& a, Range range) {
  using A = Compute<T>;
  using S = Simd<A>;
  Arena arena(range.scratch);
  const Operand<T> input(a.input, a.shape, range, arena);
  const Operand<T> output(a.output, a.shape, range, arena);
  const A* factor = static_cast<const A*>(a.factor);
  for_each_tile(range, [&](int64_t first, int64_t count) {
    input.stage(first, count);
    for (int64_t r = first; r < first + count; ++r) {
      const T* x = input.row(r, first);
      T* y = output.row(r, first);
      const auto f = S::broadcast(factor[r * a.factor_step]);
      // Adding +0 changes -0 alone: zeros stay +0 whatever the factor's sign, as they are in a row of its
      // own.
      const auto zero = S::broadcast(0);
      for_each_vector<A>(a.shape.classes, [&](auto, auto at, int64_t i) __attribute__((always_inline)) {
        at.store(y + i, S::fma(at.load(x + i, 0), f, zero));
      });
    }
    output.flush(first, count);
  });
  return SOFTKERN_ISA;
}

template <class T>
constexpr Kernels make_kernels() {
  return {&softmax<T>,
          &log_softmax<T>,
          &backward<T, &softmax_backward_row<T>>,
          &backward<T, &log_softmax_backward_row<T>>,
          &cross_entropy<T>,
          &scale<T>};
}

constexpr KernelTable make_table() {
  return {SOFTKERN_ISA,
          {make_kernels<float>(), make_kernels<double>(), make_kernels<BFloat16>(), make_kernels<Half>()}};
}

}  // namespace
}  // namespace softkern::cpu
