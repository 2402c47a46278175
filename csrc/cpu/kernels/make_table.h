// SPDX-License-Identifier: Apache-2.0
// From rows to calls: the functions that an ISA exports.
#pragma once

#include "cross_entropy_lanes.h"
#include "log_softmax.h"
#include "softmax.h"
#include "targets.h"

namespace softkern::cpu {
namespace {

constexpr Ran kRowsRan = {SOFTKERN_ISA, "rows"}, kSharedRan = {SOFTKERN_ISA, "shared"};

/// body(order, memory) for rows that are computed a row a lane; false for those that aren't. `packed`: the
/// classes of an operand lie apart.
template <class A, class Body>
SK_INLINE bool in_lanes(const Shape& shape, const Range& range, bool packed, Body body) {
  if (shape.classes <= kLaneClasses) {
    body(FewClasses<A>{}, SmallTiles<A>());
  } else if (packed && fits_lanes(shape, range.end - range.begin, sizeof(A))) {
    body(AsRows<A>{}, WideTiles<A>(range, shape));
  } else {
    return false;
  }
  return true;
}

/// What ran, if it was not in lanes.
SK_INLINE Ran rows_ran(bool packed) { return packed ? Ran{SOFTKERN_ISA, "tiles"} : kRowsRan; }

template <class T, class Row>
SK_INLINE void forward_rows(const ForwardArgs& a, const Range& range, Arena arena, Row row) {
  const Operand<T> input(a.input, a.shape, range, arena);
  const Operand<T> output(a.output, a.shape, range, arena, &input, a.stream);
  for_each_tile<T>(a.shape, range, [&](int64_t first, int64_t count) {
    input.stage(first, count);
    for (int64_t r = first; r < first + count; ++r) {
      row(r, input.row(r, first), output.row(r, first), input.next(r, range.end), output.streamed());
    }
    output.flush(first, count);
  });
}

/// lanes(order, input, output, blocks, count, x) computes blocks of rows, x being memory for them; row(r, x,
/// y, next, stream) a row.
template <class T, class Lanes, class Row>
SK_INLINE Ran forward(const ForwardArgs& a, const Range& range, Arena arena, Lanes lanes, Row row) {
  const bool packed = is_packed(a.input) || is_packed(a.output);
  Ran ran = rows_ran(packed);
  const bool done = in_lanes<Compute<T>>(a.shape, range, packed, [&](auto order, auto&& tiles) {
    ran = order.kRan;
    const LaneOperand<T> input(a.input, a.shape, range), output(a.output, a.shape, range, a.stream);
    const auto x = tiles.first();
    for_each_group<Compute<T>>(a.shape, range, tiles.blocks(), [&](const LaneBlock* blocks, int count) {
      lanes(order, input, output, blocks, count, x);
    });
  });
  if (!done) forward_rows<T>(a, range, arena, row);
  return ran;
}

template <class T>
constexpr bool kHasScratch = sizeof(T) < sizeof(Compute<T>);

template <class T, void (*kShare)(const T*, T*, const SharedRow<Compute<T>>&, int)>
Ran forward_share(const ForwardArgs& a, const Share& share, int step) {
  kShare(row_at<T>(a.input, a.shape, share.row), row_at<T>(a.output, a.shape, share.row),
         SharedRow<Compute<T>>(share, a.shape.classes, kHasScratch<T>), step);
  return kSharedRan;
}

template <class T, void (*kShare)(const T*, const T*, T*, const SharedRow<Compute<T>>&, int)>
Ran backward_share(const BackwardArgs& a, const Share& share, int step) {
  kShare(row_at<T>(a.grad_output, a.shape, share.row), row_at<T>(a.output, a.shape, share.row),
         row_at<T>(a.grad_input, a.shape, share.row), SharedRow<Compute<T>>(share, a.shape.classes, false),
         step);
  return kSharedRan;
}

template <class T>
Ran softmax(const ForwardArgs& a, Range range) {
  using A = Compute<T>;
  const int64_t classes = a.shape.classes;
  Arena arena(range.scratch);
  A* scratch = take_compute_row<T>(arena, classes, a.stream);
  return forward<T>(
      a, range, arena,
      [&](auto order, const auto& input, const auto& output, const LaneBlock* blocks, int count,
          const auto& x) { softmax_lanes<T, decltype(order)>(input, output, blocks, count, x, classes); },
      [&](int64_t, const T* x, T* y, const T* next, bool stream) {
        softmax_row(x, y, scratch, classes, next, stream);
      });
}

template <class T>
Ran log_softmax(const ForwardArgs& a, Range range) {
  const int64_t classes = a.shape.classes;
  return forward<T>(
      a, range, Arena(range.scratch),
      [&](auto order, const auto& input, const auto& output, const LaneBlock* blocks, int count,
          const auto& x) { log_softmax_lanes<T, decltype(order)>(input, output, blocks, count, x, classes); },
      [&](int64_t, const T* x, T* y, const T* next, bool stream) {
        log_softmax_row(x, y, classes, next, stream);
      });
}

template <class T, void (*kRow)(const T*, const T*, T*, int64_t, bool), class Lanes>
SK_INLINE Ran backward(const BackwardArgs& a, const Range& range, Lanes lanes) {
  const bool packed = is_packed(a.grad_output) || is_packed(a.output) || is_packed(a.grad_input);
  Ran ran = rows_ran(packed);
  const bool done = in_lanes<Compute<T>>(a.shape, range, packed, [&](auto order, auto&& tiles) {
    ran = order.kRan;
    const LaneOperand<T> g(a.grad_output, a.shape, range), y(a.output, a.shape, range);
    const LaneOperand<T> dx(a.grad_input, a.shape, range, a.stream);
    const auto gs = tiles.first(), ys = tiles.second();
    for_each_group<Compute<T>>(a.shape, range, tiles.blocks(), [&](const LaneBlock* blocks, int count) {
      g.load(blocks, count, gs);
      y.load(blocks, count, ys);
      lanes(order, dx, blocks, count, gs, ys);
    });
  });
  if (done) return ran;
  Arena arena(range.scratch);
  const Operand<T> g(a.grad_output, a.shape, range, arena);
  const Operand<T> y(a.output, a.shape, range, arena);
  const Operand<T> dx(a.grad_input, a.shape, range, arena, &g, a.stream);
  for_each_tile<T>(a.shape, range, [&](int64_t first, int64_t count) {
    g.stage(first, count);
    y.stage(first, count);
    for (int64_t r = first; r < first + count; ++r) {
      kRow(g.row(r, first), y.row(r, first), dx.row(r, first), a.shape.classes, dx.streamed());
    }
    dx.flush(first, count);
  });
  return ran;
}

template <class T>
Ran softmax_backward(const BackwardArgs& a, Range range) {
  return backward<T, &softmax_backward_row<T>>(
      a, range,
      [&](auto order, const auto& dx, const LaneBlock* blocks, int count, const auto& g, const auto& y) {
        softmax_backward_lanes<T, decltype(order)>(dx, blocks, count, g, y, a.shape.classes);
      });
}

template <class T>
Ran log_softmax_backward(const BackwardArgs& a, Range range) {
  return backward<T, &log_softmax_backward_row<T>>(
      a, range,
      [&](auto order, const auto& dx, const LaneBlock* blocks, int count, const auto& g, const auto& y) {
        log_softmax_backward_lanes<T, decltype(order)>(dx, blocks, count, g, y, a.shape.classes);
      });
}

/// What all rows of a call have in common, and the choice of a row's masses.
template <class T>
class RowMasses {
  using A = Compute<T>;

 public:
  explicit RowMasses(const CrossEntropyArgs& a)
      : target_(a.target),
        ignore_index_(a.options.ignore_index),
        weight_(static_cast<const T*>(a.weight)),
        keep_(static_cast<A>(1 - a.options.label_smoothing)),
        share_(static_cast<A>(a.options.label_smoothing / static_cast<double>(a.shape.classes))) {}

  bool ignored(int64_t r) const { return target_ != nullptr && target_[r] == ignore_index_; }

  /// body(mass, hot) for row r, which is not ignored, with these probabilities where there are no indices,
  /// and those of the next row.
  template <class Body>
  SK_INLINE void with(int64_t r, const T* probabilities, const T* next, Body body) const {
    if (target_ == nullptr) {
      if (weight_ != nullptr) {
        body(ProbabilityMass<T, true>{weight_, probabilities, next, keep_, share_}, Hot<A>{-1, 0});
      } else {
        body(ProbabilityMass<T, false>{nullptr, probabilities, next, keep_, share_}, Hot<A>{-1, 0});
      }
      return;
    }
    const int64_t y = target_[r];
    const Hot<A> hot{y, keep_ * (weight_ != nullptr ? widen(weight_[y]) : A(1))};
    if (share_ == 0) {
      body(NoMass{}, hot);
    } else if (weight_ != nullptr) {
      body(WeightMass<T>{weight_, share_}, hot);
    } else {
      body(UniformMass<A>{share_}, hot);
    }
  }

 private:
  const int64_t* target_;
  int64_t ignore_index_;
  const T* weight_;
  A keep_, share_;
};

template <class T>
Ran cross_entropy(const CrossEntropyArgs& a, Range range) {
  using A = Compute<T>;
  const bool packed = is_packed(a.logits) || is_packed(a.probabilities) || is_packed(a.grad);
  Ran ran = rows_ran(packed);
  const bool done = in_lanes<A>(a.shape, range, packed, [&](auto order, auto&& tiles) {
    ran = order.kRan;
    CrossEntropyLanes<T, decltype(order)>(a, range).run(tiles);
  });
  if (done) return ran;
  Arena arena(range.scratch);
  const Operand<T> logits(a.logits, a.shape, range, arena);
  const Operand<T> probabilities(a.probabilities, a.shape, range, arena);
  const Operand<T> grad(a.grad, a.shape, range, arena, &logits, a.stream);
  A* scratch = grad.given() ? take_compute_row<T>(arena, a.shape.classes, grad.streamed()) : nullptr;
  A* loss = static_cast<A*>(a.loss);
  const RowMasses<T> masses(a);
  for_each_tile<T>(a.shape, range, [&](int64_t first, int64_t count) {
    logits.stage(first, count);
    probabilities.stage(first, count);
    for (int64_t r = first; r < first + count; ++r) {
      T* dx = grad.given() ? grad.row(r, first) : nullptr;
      if (masses.ignored(r)) {
        // Exact zeros, whatever the logits: 0 * NaN would spread the NaN of a padded row.
        if (dx != nullptr) zero_row(dx, a.shape.classes);
        loss[r] = 0;
        continue;
      }
      const T* t = probabilities.given() ? probabilities.row(r, first) : nullptr;
      const T* next = probabilities.given() ? probabilities.next(r, range.end) : nullptr;
      masses.with(r, t, next, [&](const auto& mass, const Hot<A>& hot) {
        loss[r] = cross_entropy_row(logits.row(r, first), mass, hot, dx, static_cast<A>(a.grad_factor),
                                    scratch, a.shape.classes, logits.next(r, range.end), grad.streamed());
      });
    }
    grad.flush(first, count);
  });
  return ran;
}

template <class T>
Ran cross_entropy_share(const CrossEntropyArgs& a, const Share& share, int step) {
  using A = Compute<T>;
  const int64_t r = share.row;
  T* grad = a.grad.data == nullptr ? nullptr : row_at<T>(a.grad, a.shape, r);
  A* loss = static_cast<A*>(a.loss) + r;
  const RowMasses<T> masses(a);
  if (masses.ignored(r)) {
    if (step == 0) {
      if (grad != nullptr) zero_row(grad + share.begin, share.end - share.begin);
      if (share.index == 0) *loss = 0;
    }
    return kSharedRan;
  }
  const T* t = a.probabilities.data == nullptr ? nullptr : row_at<T>(a.probabilities, a.shape, r);
  const SharedRow<A> shared(share, a.shape.classes, kHasScratch<T>);
  masses.with(r, t, nullptr, [&](const auto& mass, const Hot<A>& hot) {
    cross_entropy_share(row_at<T>(a.logits, a.shape, r), mass, hot, grad, static_cast<A>(a.grad_factor), loss,
                        shared, step);
  });
  return kSharedRan;
}

// Adding +0 changes -0 alone: zeros stay +0 whatever the factor's sign, as they are in a row of its own.
template <class T>
Ran scale(const ScaleArgs& a, Range range) {
  using A = Compute<T>;
  using S = Simd<A>;
  const auto zero = S::broadcast(0);
  const A* factor = static_cast<const A*>(a.factor);
  return forward<T>(
      {a.shape, a.input, a.output, a.stream}, range, Arena(range.scratch),
      [&](auto, const auto& input, const auto& output, const LaneBlock* blocks, int count, const auto& x) {
        input.load(blocks, count, x);
        output.store(blocks, count, x, [&](int b, auto body) __attribute__((always_inline)) {
          A lanes[S::kLanes] = {};
          for (int l = 0; l < blocks[b].count; ++l) lanes[l] = factor[(blocks[b].first + l) * a.factor_step];
          const auto f = S::load(lanes);
          const auto* const xb = x[b];
          body([&](int64_t c) __attribute__((always_inline)) { return S::fma(xb[c], f, zero); });
        });
      },
      [&](int64_t r, const T* x, T* y, const T*, bool stream) __attribute__((always_inline)) {
        const auto f = S::broadcast(factor[r * a.factor_step]);
        write_vectors<A>(y, a.shape.classes, stream, [&](auto at, int64_t i) __attribute__((always_inline)) {
          return S::fma(at.load(x + i, 0), f, zero);
        });
      });
}

/// Streamed results are there for others when the call returns.
template <class Args, Ran (*kRows)(const Args&, Range)>
Ran fenced(const Args& a, Range range) {
  const Ran ran = kRows(a, range);
  if (a.stream) Simd<float>::fence();
  return ran;
}

template <class T>
constexpr Kernels make_kernels() {
  return {{&fenced<ForwardArgs, &softmax<T>>, &forward_share<T, &softmax_share<T>>, 3},
          {&fenced<ForwardArgs, &log_softmax<T>>, &forward_share<T, &log_softmax_share<T>>, 3},
          {&fenced<BackwardArgs, &softmax_backward<T>>, &backward_share<T, &softmax_backward_share<T>>, 2},
          {&fenced<BackwardArgs, &log_softmax_backward<T>>,
           &backward_share<T, &log_softmax_backward_share<T>>, 2},
          {&fenced<CrossEntropyArgs, &cross_entropy<T>>, &cross_entropy_share<T>, 3},
          {&fenced<ScaleArgs, &scale<T>>},
          &sum_losses<Compute<T>>};
}

constexpr KernelTable make_table() {
  return {SOFTKERN_ISA,
          &count_targets,
          {make_kernels<float>(), make_kernels<double>(), make_kernels<BFloat16>(), make_kernels<Half>()}};
}

}  // namespace
}  // namespace softkern::cpu
