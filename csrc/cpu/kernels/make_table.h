// SPDX-License-Identifier: Apache-2.0
// From rows to calls: the functions that an ISA exports, for one element type an object.
#pragma once

#include "cross_entropy_lanes.h"
#include "log_softmax.h"
#include "mass.h"
#include "softmax.h"
#include "targets.h"

namespace softkern::cpu {
namespace {

constexpr Ran kSharedRan = {SOFTKERN_ISA, "shared"};

template <class T, class Each, class Begin, class Finish>
SK_INLINE void forward_rows(const ForwardArgs& a, const Range& range, Arena arena, Each each, Begin begin,
                            Finish finish) {
  const Operand<T> input(a.input, a.shape, range, arena);
  const Operand<T> output(a.output, a.shape, range, arena, &input, a.stream);
  for_each_tile<T>(a.shape, range, [&](int64_t first, int64_t count) {
    input.stage(first, count);
    each(
        first, count, lags(a.shape.classes, sizeof(T)),
        [&](int64_t r) __attribute__((always_inline)) {
          return begin(r, input.row(r, first), output.row(r, first), input.next(r, range.end));
        },
        [&](int64_t r, const auto& begun) __attribute__((always_inline)) {
          finish(r, input.row(r, first), output.row(r, first), begun, output.streamed());
        });
    output.flush(first, count);
  });
}

/// for_each_row, as an argument.
struct EachRow {
  template <class Begin, class Finish>
  SK_INLINE void operator()(int64_t first, int64_t count, bool lag, Begin begin, Finish finish) const {
    for_each_row(first, count, lag, begin, finish);
  }
};

/// lanes(order, input, output, blocks, count, x) computes blocks of rows, x being memory for them; a row is
/// begin(r, x, y, next) and finish(r, x, y, what of that `each` makes, stream). `sums`: of exponentials.
template <class T, class Lanes, class Each, class Begin, class Finish>
SK_INLINE Ran forward(const ForwardArgs& a, const Range& range, bool sums, Arena arena, Lanes lanes,
                      Each each, Begin begin, Finish finish) {
  const bool packed = is_packed(a.input) || is_packed(a.output);
  const auto first_rows = [&](auto order, const Range& all, auto&& tiles) {
    const LaneOperand<T> input(a.input, a.shape, all), output(a.output, a.shape, all, a.stream);
    const auto x = tiles.first();
    for_each_group<Compute<T>>(a.shape, all, tiles.blocks(), [&](const LaneBlock* blocks, int count) {
      lanes(order, input, output, blocks, count, x);
    });
  };
  Range rest = range;
  const Ran ran = in_lanes<Compute<T>>(a.shape, rest, packed, sums, first_rows);
  if (rest.begin < rest.end) forward_rows<T>(a, rest, arena, each, begin, finish);
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
  const ComputeRows<T> terms(arena, classes, a.stream);
  RowWalk<T> walk(classes);
  return forward<T>(
      a, range, true, arena,
      [&](auto order, const auto& input, const auto& output, const LaneBlock* blocks, int count,
          const auto& x) { softmax_lanes<T, decltype(order)>(input, output, blocks, count, x, classes); },
      EachRow(),
      [&](int64_t r, const T* x, T* y, const T* next)
          __attribute__((always_inline)) { return softmax_sum(walk, x, terms.row(r, y), next); },
      [&](int64_t r, const T*, T* y, A sum, bool stream)
          __attribute__((always_inline)) { softmax_write(terms.row(r, y), y, sum, classes, stream); });
}

template <class T>
Ran log_softmax(const ForwardArgs& a, Range range) {
  using A = Compute<T>;
  const int64_t classes = a.shape.classes;
  RowWalk<T> walk(classes);
  return forward<T>(
      a, range, true, Arena(range.scratch),
      [&](auto order, const auto& input, const auto& output, const LaneBlock* blocks, int count,
          const auto& x) { log_softmax_lanes<T, decltype(order)>(input, output, blocks, count, x, classes); },
      [](int64_t first, int64_t count, bool lag, auto begin, auto finish)
          __attribute__((always_inline)) { for_each_log_softmax_row<A>(first, count, lag, begin, finish); },
      [&](int64_t, const T* x, T*, const T* next) __attribute__((always_inline)) {
        return walk.stats(x, nullptr, next, walk.range(x));  // 1 max, 2 sum-exp
      },
      [&](int64_t, const T* x, T* y, const LogNormaliser<A>& row, bool stream)
          __attribute__((always_inline)) { log_softmax_write(x, y, row, classes, stream); });
}

template <class T, void (*kRow)(const T*, const T*, T*, int64_t, bool), class Lanes>
SK_INLINE Ran backward(const BackwardArgs& a, const Range& range, Lanes lanes) {
  const bool spread = is_spread(a.grad_output);
  const bool packed = (is_packed(a.grad_output) && !spread) || is_packed(a.output) || is_packed(a.grad_input);
  const auto first_rows = [&](auto order, const Range& all, auto&& tiles) {
    const LaneOperand<T> g(a.grad_output, a.shape, all), y(a.output, a.shape, all);
    const LaneOperand<T> dx(a.grad_input, a.shape, all, a.stream);
    const auto gs = tiles.first(), ys = tiles.second();
    for_each_group<Compute<T>>(a.shape, all, tiles.blocks(), [&](const LaneBlock* blocks, int count) {
      g.load(blocks, count, gs);
      y.load(blocks, count, ys);
      lanes(order, dx, blocks, count, gs, ys);
    });
  };
  Range rest = range;
  const Ran ran = in_lanes<Compute<T>>(a.shape, rest, packed, false, first_rows);
  if (rest.begin == rest.end) return ran;
  Arena arena(range.scratch);
  const Operand<T> g(a.grad_output, a.shape, rest, arena);
  const Operand<T> y(a.output, a.shape, rest, arena);
  const Operand<T> dx(a.grad_input, a.shape, rest, arena, spread ? nullptr : &g, a.stream);
  for_each_tile<T>(a.shape, rest, [&](int64_t first, int64_t count) {
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

/// What all rows of a call have in common, and the kind of their masses.
template <class T>
class RowMasses {
  using A = Compute<T>;

 public:
  explicit RowMasses(const CrossEntropyArgs& a)
      : target_(a.target),
        ignore_index_(a.options.ignore_index),
        weight_(static_cast<const T*>(a.weight)),
        numbers_(mass_numbers<A>(a.options, a.shape.classes)) {}

  bool ignored(int64_t r) const { return target_ != nullptr && target_[r] == ignore_index_; }
  /// Of row r, which is not ignored.
  Hot<A> hot(int64_t r) const {
    if (target_ == nullptr) return {-1, 0};
    const int64_t y = target_[r];
    const A mass = hot_mass<OneLane<A>>(numbers_);
    return {y, weight_ != nullptr ? weighted<OneLane<A>>(mass, widen(weight_[y])) : mass};
  }
  /// body(mass_of): mass_of(t, next) is what a row's classes have, with these probabilities where there are
  /// no indices, and those of the next row.
  template <class Body>
  SK_INLINE void with(Body body) const {
    if (target_ == nullptr && weight_ != nullptr) {
      body([&](const T* t, const T* next) { return ProbabilityMass<T, true>{weight_, t, next, numbers_}; });
    } else if (target_ == nullptr) {
      body([&](const T* t, const T* next) { return ProbabilityMass<T, false>{nullptr, t, next, numbers_}; });
    } else if (numbers_.share == 0) {
      body([](const T*, const T*) { return NoMass{}; });
    } else if (weight_ != nullptr) {
      body([&](const T*, const T*) { return WeightMass<T>{weight_, numbers_}; });
    } else {
      body([&](const T*, const T*) { return UniformMass<A>{numbers_}; });
    }
  }

 private:
  const int64_t* target_;
  int64_t ignore_index_;
  const T* weight_;
  MassNumbers<A> numbers_;
};

template <class T, class MassOf>
void cross_entropy_rows(const CrossEntropyArgs& a, const Range& range, const RowMasses<T>& masses,
                        MassOf mass_of) {
  using A = Compute<T>;
  using Mass = decltype(mass_of(nullptr, nullptr));
  struct Begun {
    CrossEntropySums<A, kIsSpread<Mass>> sums;
    Mass mass;
    bool ignored;
  };
  const int64_t classes = a.shape.classes;
  Arena arena(range.scratch);
  const Operand<T> logits(a.logits, a.shape, range, arena);
  const Operand<T> probabilities(a.probabilities, a.shape, range, arena);
  const Operand<T> grad(a.grad, a.shape, range, arena, &logits, a.stream);
  const ComputeRows<T> terms =
      grad.given() ? ComputeRows<T>(arena, classes, grad.streamed()) : ComputeRows<T>();
  RowWalk<T> walk(classes);
  Losses<A, kIsSpread<Mass>> losses(static_cast<A*>(a.loss));
  for_each_tile<T>(a.shape, range, [&](int64_t first, int64_t count) {
    logits.stage(first, count);
    probabilities.stage(first, count);
    const auto begin = [&](int64_t r) __attribute__((always_inline)) {
      Begun row{{}, mass_of(nullptr, nullptr), masses.ignored(r)};
      if (row.ignored) return row;
      if (probabilities.given())
        row.mass = mass_of(probabilities.row(r, first), probabilities.next(r, range.end));
      A* const e = grad.given() ? terms.row(r, grad.row(r, first)) : nullptr;
      row.sums = cross_entropy_sums(walk, logits.row(r, first), row.mass, masses.hot(r), e, classes,
                                    logits.next(r, range.end));
      return row;
    };
    const auto finish = [&](int64_t r, const Begun& row) __attribute__((always_inline)) {
      T* const dx = grad.given() ? grad.row(r, first) : nullptr;
      if (row.ignored) {
        // Exact zeros, whatever the logits: 0 * NaN would spread the NaN of a padded row.
        if (dx != nullptr) zero_row(dx, classes);
        static_cast<A*>(a.loss)[r] = 0;
        return;
      }
      losses.add(r, row.sums);
      if (dx != nullptr) {
        cross_entropy_write(row.sums, terms.row(r, dx), dx, row.mass, static_cast<A>(a.grad_factor), 0,
                            classes,
                            grad.streamed());  // 3 write
      }
    };
    for_each_row(first, count, grad.given() && lags(classes, sizeof(T)), begin, finish);
    grad.flush(first, count);
  });
  losses.flush();
}

template <class T>
Ran cross_entropy(const CrossEntropyArgs& a, Range range) {
  using A = Compute<T>;
  const bool packed = is_packed(a.logits) || is_packed(a.probabilities) || is_packed(a.grad);
  Range rest = range;
  const Ran ran = in_lanes<A>(a.shape, rest, packed, true, [&](auto order, const Range& all, auto&& tiles) {
    CrossEntropyLanes<T, decltype(order)>(a, all).run(tiles);
  });
  if (rest.begin == rest.end) return ran;
  const RowMasses<T> masses(a);
  masses.with([&](const auto& mass_of) { cross_entropy_rows<T>(a, rest, masses, mass_of); });
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
  masses.with([&](const auto& mass_of) {
    cross_entropy_share(row_at<T>(a.logits, a.shape, r), mass_of(t, nullptr), masses.hot(r), grad,
                        static_cast<A>(a.grad_factor), loss, shared, step);
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
      {a.shape, a.input, a.output, a.stream}, range, false, Arena(range.scratch),
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
      EachRow(), [](int64_t, const T*, T*, const T*) { return 0; },
      [&](int64_t r, const T* x, T* y, int, bool stream) __attribute__((always_inline)) {
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
          mass_kernel<T>(),
          &sum_losses<Compute<T>>,
          &count_targets};
}

}  // namespace
}  // namespace softkern::cpu
