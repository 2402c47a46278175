// SPDX-License-Identifier: Apache-2.0
// Drives the rows, lanes and chunks of a call, for ops with one input and one output and for their gradients.
#pragma once

#include "../lanes/ways.h"
#include "../rows/shared.h"

namespace softkern::cpu {
namespace {

constexpr Ran kSharedRan = {SOFTKERN_ISA, "shared"};

/// Completes the non-temporal stores before the call returns, so that other threads see the results.
template <class Args, Ran (*kRows)(const Args&, Range)>
Ran fenced(const Args& a, Range range) {
  const Ran ran = kRows(a, range);
  if (a.stream) Simd<float>::fence();
  return ran;
}

/// The work of an op besides reading and writing. sums: it sums exponentials. terms: it keeps the terms of a
/// row until the row is written.
struct ForwardKind {
  bool sums, terms;
};

template <class T>
struct ForwardRows {
  bool lag;
  ComputeRows<T> terms;
  Operand<T> input, output;
  ForwardRows(const ForwardArgs& a, const Range& range, Arena& arena, ForwardKind kind)
      : lag(lags(a.shape.classes, sizeof(T))),
        terms(kind.terms ? ComputeRows<T>(arena, a.shape.classes, a.stream, lag) : ComputeRows<T>()),
        input(a.input, a.shape, range, arena),
        output(a.output, a.shape, range, arena, &input, a.stream) {}
};

template <class T, class Each, class Begin, class Finish>
SK_INLINE void forward_rows(const ForwardArgs& a, const Range& range, ForwardKind kind, Each each,
                            Begin begin, Finish finish) {
  Arena arena(range.scratch);
  const ForwardRows<T> rows(a, range, arena, kind);
  for_each_tile<T>(a.shape, range, [&](int64_t first, int64_t count) {
    rows.input.stage(first, count);
    each(
        first, count, rows.lag,
        [&](int64_t r) __attribute__((always_inline)) {
          return begin(r, rows.input.row(r, first), rows.terms.row(r, rows.output.row(r, first)),
                       rows.input.next(r, range.end));
        },
        [&](int64_t r, const auto& begun) __attribute__((always_inline)) {
          T* const y = rows.output.row(r, first);
          finish(r, rows.input.row(r, first), rows.terms.row(r, y), y, begun, rows.output.streamed());
        });
    rows.output.flush(first, count);
  });
}

/// lanes(order, input, output, blocks, count, x) computes blocks of rows; x is memory for them. A single row
/// is computed by begin(r, x, e, next) and finish(r, x, e, y, begun, stream): e is memory for its terms, and
/// `begun` is the value that `each` makes from the result of begin.
template <class T, class Lanes, class Each, class Begin, class Finish>
SK_INLINE Ran forward(const ForwardArgs& a, const Range& range, ForwardKind kind, Lanes lanes, Each each,
                      Begin begin, Finish finish) {
  const bool strided = is_strided(a.input) || is_strided(a.output);
  const auto first_rows = [&](auto order, const Range& all, auto&& tiles) {
    const LaneInput<T> input(a.input, a.shape, all);
    const LaneOutput<T> output(a.output, a.shape, a.stream);
    const auto x = tiles.first();
    for_each_group<Compute<T>>(a.shape, all, tiles.blocks(), [&](const LaneBlock* blocks, int count) {
      lanes(order, input, output, blocks, count, x);
    });
  };
  Range rest = range;
  const Ran ran = in_lanes<Compute<T>>(a.shape, rest, strided, kind.sums, first_rows);
  if (rest.begin < rest.end) forward_rows<T>(a, rest, kind, each, begin, finish);
  return ran;
}

/// The same for ops whose rows have no step in common.
template <class T, class Lanes, class Begin, class Finish>
SK_INLINE Ran forward(const ForwardArgs& a, const Range& range, ForwardKind kind, Lanes lanes, Begin begin,
                      Finish finish) {
  const auto each = [](auto... rows) __attribute__((always_inline)) { for_each_row(rows...); };
  return forward<T>(a, range, kind, lanes, each, begin, finish);
}

template <class T>
SK_INLINE size_t forward_scratch(const ForwardArgs& a, int64_t rows, ForwardKind kind) {
  const bool strided = is_strided(a.input) || is_strided(a.output);
  return scratch_of<Compute<T>>(a.shape, rows, strided, kind.sums, [&](const Range& rest, Arena& arena) {
    ForwardRows<T>(a, rest, arena, kind);
  });
}

/// The parts of a shared row that are kept between the steps.
template <class T>
constexpr SharedParts shared_parts(ForwardKind kind) {
  return {false, kind.terms && kIsNarrow<T>};
}

template <class T, const ForwardKind& kKind, void (*kChunk)(const T*, T*, const SharedRow<Compute<T>>&, int)>
Ran forward_chunk(const ForwardArgs& a, const Chunk& chunk, int step) {
  kChunk(row_at<T>(a.input, a.shape, chunk.row), row_at<T>(a.output, a.shape, chunk.row),
         SharedRow<Compute<T>>(chunk, a.shape.classes, shared_parts<T>(kKind)), step);
  return kSharedRan;
}

template <class T, const ForwardKind& kKind>
size_t forward_shared(const ForwardArgs& a, int chunks) {
  if (is_strided(a.input) || is_strided(a.output)) return 0;
  return SharedRow<Compute<T>>::bytes(a.shape.classes, chunks, shared_parts<T>(kKind));
}

template <class T>
struct BackwardRows {
  Operand<T> g, y, dx;
  BackwardRows(const BackwardArgs& a, const Range& range, Arena& arena)
      : g(a.grad_output, a.shape, range, arena),
        y(a.output, a.shape, range, arena),
        dx(a.grad_input, a.shape, range, arena, is_spread(a.grad_output) ? nullptr : &g, a.stream) {}
};

/// A spread gradient (class stride 0) does not count as strided: it is read as it is if the other operands
/// are rows in place.
SK_INLINE bool backward_is_strided(const BackwardArgs& a) {
  return (is_strided(a.grad_output) && !is_spread(a.grad_output)) || is_strided(a.output) ||
         is_strided(a.grad_input);
}

template <class T, void (*kRow)(const T*, const T*, T*, int64_t, bool), class Lanes>
SK_INLINE Ran backward(const BackwardArgs& a, const Range& range, Lanes lanes) {
  const auto first_rows = [&](auto order, const Range& all, auto&& tiles) {
    const LaneInput<T> g(a.grad_output, a.shape, all), y(a.output, a.shape, all);
    const LaneOutput<T> dx(a.grad_input, a.shape, a.stream);
    const auto gs = tiles.first(), ys = tiles.second();
    for_each_group<Compute<T>>(a.shape, all, tiles.blocks(), [&](const LaneBlock* blocks, int count) {
      g.load(blocks, count, gs);
      y.load(blocks, count, ys);
      lanes(order, dx, blocks, count, gs, ys);
    });
  };
  Range rest = range;
  const Ran ran = in_lanes<Compute<T>>(a.shape, rest, backward_is_strided(a), false, first_rows);
  if (rest.begin == rest.end) return ran;
  Arena arena(rest.scratch);
  const BackwardRows<T> rows(a, rest, arena);
  for_each_tile<T>(a.shape, rest, [&](int64_t first, int64_t count) {
    rows.g.stage(first, count);
    rows.y.stage(first, count);
    for (int64_t r = first; r < first + count; ++r) {
      kRow(rows.g.row(r, first), rows.y.row(r, first), rows.dx.row(r, first), a.shape.classes,
           rows.dx.streamed());
    }
    rows.dx.flush(first, count);
  });
  return ran;
}

template <class T>
size_t backward_scratch(const BackwardArgs& a, int64_t rows) {
  return scratch_of<Compute<T>>(a.shape, rows, backward_is_strided(a), false,
                                [&](const Range& rest, Arena& arena) { BackwardRows<T>(a, rest, arena); });
}

template <class T, void (*kChunk)(const T*, const T*, T*, const SharedRow<Compute<T>>&, int)>
Ran backward_chunk(const BackwardArgs& a, const Chunk& chunk, int step) {
  kChunk(row_at<T>(a.grad_output, a.shape, chunk.row), row_at<T>(a.output, a.shape, chunk.row),
         row_at<T>(a.grad_input, a.shape, chunk.row),
         SharedRow<Compute<T>>(chunk, a.shape.classes, SharedParts{}), step);
  return kSharedRan;
}

template <class T>
size_t backward_shared(const BackwardArgs& a, int chunks) {
  if (is_strided(a.grad_output) || is_strided(a.output) || is_strided(a.grad_input)) return 0;
  return SharedRow<Compute<T>>::bytes(a.shape.classes, chunks, SharedParts{});
}

}  // namespace
}  // namespace softkern::cpu
