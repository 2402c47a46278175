// SPDX-License-Identifier: Apache-2.0
// Rows of few classes: a row a lane, so that no sum runs across lanes and log is a vector operation too.
// Vector c of a block holds class c of kLanes rows. In sums over the classes, class c goes to accumulator c %
// 2, and lanes know nothing of each other: a row's bits depend on that row alone.
#pragma once

#include "operand.h"
#include "row_stats.h"

namespace softkern::cpu {
namespace {

/// Rows first..first+count-1, count <= kLanes. one_slice: they have the same outer index.
struct LaneBlock {
  int64_t first;
  int count;
  bool one_slice;
};

/// Blocks that are loaded and stored together. Where vectors run over rows, a block is one cache line of each
/// class: prefetchers and DRAM pages want more of them at a time.
constexpr int kGroup = 8;

/// body(blocks, count) for the rows of a range, count <= kGroup.
template <class A, class Body>
SK_INLINE void for_each_group(const Shape& shape, const Range& range, Body body) {
  constexpr int64_t L = Simd<A>::kLanes;
  // Where a slice has less rows than there are lanes, blocks run across slices.
  const bool slices = shape.inner >= L;
  LaneBlock blocks[kGroup];
  for (int64_t first = range.begin; first < range.end;) {
    int64_t end = slices ? (first / shape.inner + 1) * shape.inner : range.end;
    if (end > range.end) end = range.end;
    int count = 0;
    for (; count < kGroup && first < end; ++count) {
      const int64_t rows = end - first < L ? end - first : L;
      blocks[count] = {first, static_cast<int>(rows), slices || shape.inner == 1};
      first += rows;
    }
    body(blocks, count);
  }
}

template <class A>
using LaneGroup = typename Simd<A>::Reg[kGroup][kLaneClasses];

/// body(slot, c) for all classes, class c with slot c % 2.
template <class Body>
SK_INLINE void for_each_class(int classes, Body body) {
  int c = 0;
  for (; c + 2 <= classes; c += 2) {
    body(Slot<0>{}, c);
    body(Slot<1>{}, c + 1);
  }
  if (c < classes) body(Slot<0>{}, c);
}

/// The elements of an operand as blocks of lanes.
template <class T>
class LaneOperand {
  using A = Compute<T>;
  using S = Simd<A>;
  using Reg = typename S::Reg;
  static constexpr int L = S::kLanes, P = S::kPiece;

 public:
  LaneOperand(const Rows& rows, const Shape& shape, const Range& range)
      : rows_(rows),
        shape_(shape),
        classes_(static_cast<int>(shape.classes)),
        step_(shape.inner == 1 ? rows.outer_stride : rows.inner_stride) {
    if (!given() || range.begin >= range.end) return;
    // Rows that follow each other upwards in memory: what lies between two of them is the tensor's own.
    const bool upwards =
        rows.class_stride == 1 && step_ >= classes_ &&
        (shape.inner == 1 || rows.outer_stride >= (shape.inner - 1) * rows.inner_stride + classes_);
    if (upwards) readable_end_ = at(range.end - 1) + classes_;
  }

  bool given() const { return rows_.data != nullptr; }

  SK_CALL void load(const LaneBlock* block, int count, LaneGroup<A>& x) const {
    if (block->one_slice && step_ == 1 && rows_.class_stride != 1) {
      for (int c = 0; c < classes_; ++c) {
        const T* p = at(block->first) + c * rows_.class_stride;
        for (int b = 0; b < count; ++b, p += L) {
          x[b][c] = block[b].count == L ? S::load(p) : S::load(p, block[b].count, 0);
        }
      }
    } else if (rows_.class_stride == 1) {
      for (int b = 0; b < count; ++b) load_rows(block[b], x[b]);
    } else {
      for (int b = 0; b < count; ++b) load_elements(block[b], x[b]);
    }
  }

  SK_CALL void store(const LaneBlock* block, int count, const LaneGroup<A>& y) const {
    if (block->one_slice && step_ == 1 && rows_.class_stride != 1) {
      for (int c = 0; c < classes_; ++c) {
        T* p = at(block->first) + c * rows_.class_stride;
        for (int b = 0; b < count; ++b, p += L) {
          if (block[b].count == L) {
            S::store(p, y[b][c]);
          } else {
            S::store(p, y[b][c], block[b].count);
          }
        }
      }
    } else if (rows_.class_stride == 1) {
      for (int b = 0; b < count; ++b) store_rows(block[b], y[b]);
    } else {
      for (int b = 0; b < count; ++b) store_elements(block[b], y[b]);
    }
  }

 private:
  T* at(int64_t r) const { return row_at<T>(rows_, shape_, r); }
  template <class U>
  SK_INLINE void find(const LaneBlock& block, U** row) const {
    if (block.one_slice) {
      row[0] = at(block.first);
      for (int l = 1; l < block.count; ++l) row[l] = row[l - 1] + step_;
    } else {
      for (int l = 0; l < block.count; ++l) row[l] = at(block.first + l);
    }
  }
  /// The last rows of a tensor end before a whole piece does: theirs are moved to and from memory of our own.
  struct Piece {
    T of[P];
  };

  SK_INLINE void load_rows(const LaneBlock& block, Reg* x) const {
    const T* const base = at(block.first);
    if (block.count == L && block.one_slice && base + (L - 1) * step_ + round_up(classes_) <= readable_end_) {
      for (int start = 0; start < classes_; start += P) {
        const T* const p = base + start;
        take(start, x, [&](int l) __attribute__((always_inline)) { return p + l * step_; });
      }
      return;
    }
    const T* row[L];
    find(block, row);
    Piece pieces[L] = {};
    for (int start = 0; start < classes_; start += P) {
      for (int c = start; c < start + P && c < classes_; ++c) {
        for (int l = 0; l < block.count; ++l) pieces[l].of[c - start] = row[l][c];
      }
      take(start, x, [&](int l) __attribute__((always_inline)) { return pieces[l].of; });
    }
  }

  SK_INLINE void store_rows(const LaneBlock& block, const Reg* y) const {
    T* const base = at(block.first);
    Piece pieces[L];
    if (block.count == L && block.one_slice && step_ == classes_ && classes_ > 1) {
      // Rows side by side: whole pieces are stored, and what that spoils of the next row is stored after it.
      // So last classes first, and rows upwards.
      T* const last = base + (L - 1) * step_;
      for (int start = (classes_ - 1) / P * P; start >= 0; start -= P) {
        T* const p = base + start;
        if (start + P <= classes_) {
          put(start, y, [&](int l) __attribute__((always_inline)) { return p + l * step_; });
        } else {
          put(start, y, [&](int l) __attribute__((always_inline)) {
            return l == L - 1 ? pieces[l].of : p + l * step_;
          });
          for (int c = start; c < classes_; ++c) last[c] = pieces[L - 1].of[c - start];
        }
      }
      return;
    }
    T* row[L];
    find(block, row);
    for (int start = 0; start < classes_; start += P) {
      put(start, y, [&](int l) __attribute__((always_inline)) { return pieces[l].of; });
      for (int c = start; c < start + P && c < classes_; ++c) {
        for (int l = 0; l < block.count; ++l) row[l][c] = pieces[l].of[c - start];
      }
    }
  }

  static SK_INLINE int round_up(int classes) { return (classes + P - 1) / P * P; }
  /// Vectors start..start+P-1 of a block, some of them perhaps behind the classes.
  template <class Row>
  static SK_INLINE void take(int start, Reg* x, Row row) {
    Reg v[P];
    S::load_columns(row, v);
    for (int c = 0; c < P; ++c) x[start + c] = v[c];
  }
  template <class Row>
  static SK_INLINE void put(int start, const Reg* y, Row row) {
    Reg v[P];
    for (int c = 0; c < P; ++c) v[c] = y[start + c];
    S::store_columns(row, v);
  }

  void load_elements(const LaneBlock& block, Reg* x) const {
    T* row[L];
    find(block, row);
    A lanes[L] = {};
    for (int c = 0; c < classes_; ++c) {
      for (int l = 0; l < block.count; ++l) lanes[l] = widen(row[l][c * rows_.class_stride]);
      x[c] = Simd<A>::load(lanes);
    }
  }
  void store_elements(const LaneBlock& block, const Reg* y) const {
    T* row[L];
    find(block, row);
    A lanes[L];
    for (int c = 0; c < classes_; ++c) {
      Simd<A>::store(lanes, y[c]);
      for (int l = 0; l < block.count; ++l) row[l][c * rows_.class_stride] = Narrow<T>::from(lanes[l]);
    }
  }

  Rows rows_;
  Shape shape_;
  int classes_;
  int64_t step_;
  const T* readable_end_ = nullptr;
};

/// RowStats of a block.
template <class A>
struct LaneStats {
  using S = Simd<A>;
  using Reg = typename S::Reg;
  Reg m, top, ties, rest;

  SK_INLINE Reg sum() const { return S::fma(ties, top, rest); }
  SK_INLINE Reg log_d() const {
    return log_one_plus<S>(S::add(S::sub(ties, S::broadcast(1)), S::div(rest, top)));
  }
};

template <class Terms, class A>
SK_INLINE void lane_terms(const typename Simd<A>::Reg* x, typename Simd<A>::Reg* e, int classes,
                          LaneStats<A>& stats) {
  using S = Simd<A>;
  const auto one = S::broadcast(1);
  const Terms terms(stats.m);
  stats.top = terms.of(stats.m);
  auto ties = S::broadcast(0);  // exact in any order
  Accumulators<A> rest;
  for_each_class(classes, [&](auto slot, int c) __attribute__((always_inline)) {
    const auto v = x[c];
    const auto t = terms.of(v);
    ties = S::add_if_equal(ties, one, v, stats.m);
    rest.add_unless_equal(slot, t, v, stats.m);
    e[c] = t;
  });
  stats.ties = ties;
  stats.rest = rest.lane_sum();
}

/// 1 max, 2 sum-exp; e receives the terms and may be x.
template <class A>
SK_CALL LaneStats<A> lane_stats(const typename Simd<A>::Reg* x, typename Simd<A>::Reg* e, int classes) {
  using S = Simd<A>;
  const A inf = __builtin_inf();
  Accumulators<A> most(-inf), least(inf);
  for_each_class(classes, [&](auto slot, int c) __attribute__((always_inline)) {
    most.take_max(slot, x[c]);
    least.take_min(slot, x[c]);
  });
  LaneStats<A> stats;
  stats.m = S::add(most.lane_max(), S::broadcast(0));
  if (NormalTerms<A>::fit(stats.m, least.lane_min())) {
    lane_terms<NormalTerms<A>, A>(x, e, classes, stats);
  } else {
    lane_terms<WideTerms<A>, A>(x, e, classes, stats);
  }
  return stats;
}

}  // namespace
}  // namespace softkern::cpu
