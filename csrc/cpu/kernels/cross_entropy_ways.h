// SPDX-License-Identifier: Apache-2.0
// The ways of cross_entropy: whole rows one after the other, one row per lane, chunks of rows that threads
// share.
#pragma once

#include "cross_entropy_lanes.h"
#include "drive.h"

namespace softkern::cpu {
namespace {

/// The data that all rows of a call have in common, and the kind of their masses.
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
  /// The hot part of row r, which must not be ignored.
  Hot<A> hot(int64_t r) const {
    if (target_ == nullptr) return {-1, 0};
    const int64_t y = target_[r];
    const A mass = hot_mass<OneLane<A>>(numbers_);
    return {y, weight_ != nullptr ? weighted<OneLane<A>>(mass, widen(weight_[y])) : mass};
  }
  /// Calls body(mass_of). mass_of(t, next) is the spread mass of the classes of a row. With class
  /// probabilities, t points to those of the row, and next to those of the next row.
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

template <class T>
struct CrossEntropyRows {
  bool lag;  // without a gradient, no write of a row waits for its sums
  Operand<T> logits, probabilities, grad;
  ComputeRows<T> terms;
  CrossEntropyRows(const CrossEntropyArgs& a, const Range& range, Arena& arena)
      : lag(a.grad.data != nullptr && lags(a.shape.classes, sizeof(T))),
        logits(a.logits, a.shape, range, arena),
        probabilities(a.probabilities, a.shape, range, arena),
        grad(a.grad, a.shape, range, arena, &logits, a.stream),
        terms(grad.given() ? ComputeRows<T>(arena, a.shape.classes, grad.streamed(), lag)
                           : ComputeRows<T>()) {}
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
  const CrossEntropyRows<T> rows(a, range, arena);
  const Operand<T>&logits = rows.logits, &probabilities = rows.probabilities, &grad = rows.grad;
  const ComputeRows<T>& terms = rows.terms;
  RowWalk<T> walk(classes);
  LossBatch<A, kIsSpread<Mass>> losses(static_cast<A*>(a.loss));
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
        // Ignored rows get exact zeros, whatever their logits: 0 * NaN would spread the NaN of a padded row.
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
    for_each_row(first, count, rows.lag, begin, finish);
    grad.flush(first, count);
  });
  losses.flush();
}

SK_INLINE bool cross_entropy_is_strided(const CrossEntropyArgs& a) {
  return is_strided(a.logits) || is_strided(a.probabilities) || is_strided(a.grad);
}

template <class T>
Ran cross_entropy(const CrossEntropyArgs& a, Range range) {
  using A = Compute<T>;
  Range rest = range;
  const Ran ran = in_lanes<A>(a.shape, rest, cross_entropy_is_strided(a), true,
                              [&](auto order, const Range& all, auto&& tiles) {
                                CrossEntropyLanes<T, decltype(order)>(a, all).run(tiles);
                              });
  if (rest.begin == rest.end) return ran;
  const RowMasses<T> masses(a);
  masses.with([&](const auto& mass_of) { cross_entropy_rows<T>(a, rest, masses, mass_of); });
  return ran;
}

template <class T>
size_t cross_entropy_scratch(const CrossEntropyArgs& a, int64_t rows) {
  return scratch_of<Compute<T>>(
      a.shape, rows, cross_entropy_is_strided(a), true,
      [&](const Range& rest, Arena& arena) { CrossEntropyRows<T>(a, rest, arena); });
}

template <class T>
SK_INLINE SharedParts shared_parts(const CrossEntropyArgs& a) {
  return {has_spread_mass(a.options, a.target == nullptr), a.grad.data != nullptr && kIsNarrow<T>};
}

template <class T>
Ran cross_entropy_chunk(const CrossEntropyArgs& a, const Chunk& chunk, int step) {
  using A = Compute<T>;
  const int64_t r = chunk.row;
  T* grad = a.grad.data == nullptr ? nullptr : row_at<T>(a.grad, a.shape, r);
  A* loss = static_cast<A*>(a.loss) + r;
  const RowMasses<T> masses(a);
  if (masses.ignored(r)) {
    if (step == 0) {
      if (grad != nullptr) zero_row(grad + chunk.begin, chunk.end - chunk.begin);
      if (chunk.index == 0) *loss = 0;
    }
    return kSharedRan;
  }
  const T* t = a.probabilities.data == nullptr ? nullptr : row_at<T>(a.probabilities, a.shape, r);
  const SharedRow<A> shared(chunk, a.shape.classes, shared_parts<T>(a));
  masses.with([&](const auto& mass_of) {
    cross_entropy_chunk(row_at<T>(a.logits, a.shape, r), mass_of(t, nullptr), masses.hot(r), grad,
                        static_cast<A>(a.grad_factor), loss, shared, step);
  });
  return kSharedRan;
}

template <class T>
size_t cross_entropy_shared(const CrossEntropyArgs& a, int chunks) {
  if (cross_entropy_is_strided(a)) return 0;
  return SharedRow<Compute<T>>::bytes(a.shape.classes, chunks, shared_parts<T>(a));
}

template <class T>
constexpr Kernel<CrossEntropyArgs> cross_entropy_kernel() {
  return {&fenced<CrossEntropyArgs, &cross_entropy<T>>, &cross_entropy_scratch<T>, &cross_entropy_chunk<T>, 3,
          &cross_entropy_shared<T>};
}

}  // namespace
}  // namespace softkern::cpu
