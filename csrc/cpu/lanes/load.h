// SPDX-License-Identifier: Apache-2.0
// Loads blocks of rows from memory into vectors, one row per lane.
#pragma once

#include "block.h"
#include "order.h"

namespace softkern::cpu {
namespace {

template <class T>
class LaneInput : public LaneRows<T> {
  using Base = LaneRows<T>;
  using A = Compute<T>;
  using S = Simd<A>;
  using Reg = typename S::Reg;
  using Piece = typename Base::Piece;
  static constexpr int L = Base::L, P = Base::P, W = Base::W;
  using Base::at, Base::classes_, Base::find, Base::has_adjacent_rows, Base::is_contiguous, Base::rows_,
      Base::step_;

 public:
  using Base::given;
  LaneInput(const Rows& rows, const Shape& shape, const Range& range) : Base(rows, shape), end_(range.end) {
    if (!given() || range.begin >= range.end) return;
    // If rows follow each other upwards in memory, the memory between them belongs to the tensor and can be
    // read.
    const bool upwards =
        rows.class_stride == 1 && step_ >= classes_ &&
        (shape.inner == 1 || rows.outer_stride >= (shape.inner - 1) * rows.inner_stride + classes_);
    if (upwards) readable_end_ = at(range.end - 1) + classes_;
  }

  void load(const LaneBlock* block, int count, const LaneTile<A>& x) const {
    fetch<false>(block, count, x, nullptr);
  }
  /// The same, and finds the range of each block.
  void load(const LaneBlock* block, int count, const LaneTile<A>& x, LaneRange<A>* range) const {
    fetch<true>(block, count, x, range);
  }

  /// The memory that is loaded after these blocks, if hardware does not prefetch it: its prefetches of a
  /// class, or of a row of one or more cache lines, end at the page boundary. Else `here`.
  Ahead ahead(const LaneBlock* block, int count, const void* here) const {
    constexpr int64_t kSize = sizeof(T), kVector = L * kSize;
    const int64_t next = block[count - 1].first + block[count - 1].count;
    if (next < end_ && has_adjacent_rows(*block)) {
      // The cache line in which the vector ends. If the vector begins in another line, that line came with
      // the previous vector.
      const char* const from = reinterpret_cast<const char*>(at(next)) + kVector - 1;
      const int64_t stride = rows_.class_stride * kSize;
      if (classes_ <= kFewStreams) return Ahead(from, stride, classes_, kVector);
      return Ahead(from, kVector, count, stride);
    }
    if (next < end_ && classes_ > kLaneClasses && is_contiguous(*block)) {
      return Ahead(at(next), kVector, count * classes_);
    }
    return Ahead(here);
  }

 private:
  template <bool kRange>
  SK_CALL void fetch(const LaneBlock* block, int count, const LaneTile<A>& x, LaneRange<A>* range) const {
    if (has_adjacent_rows(*block)) {
      fetch_adjacent<kRange>(block, count, x, range);
      return;
    }
    for (int b = 0; b < count; ++b) {
      LaneRange<A> seen;
      seen.begin();
      if (step_ == 0 && block[b].one_slice) {
        load_repeated(block[b], x[b], seen);
      } else if (is_spread(rows_)) {
        load_spread(block[b], x[b], seen);
      } else if (rows_.class_stride == 1) {
        load_rows(block[b], x[b], seen);
      } else {
        load_elements(block[b], x[b], seen);
      }
      if constexpr (kRange) range[b].set(seen);
    }
  }

  template <bool kRange>
  SK_INLINE void fetch_adjacent(const LaneBlock* block, int count, const LaneTile<A>& x,
                                LaneRange<A>* range) const {
    // With kRange, exponentials follow, which leave more time for prefetches.
    Ahead next = kRange ? Ahead(x.data) : ahead(block, count, x.data);
    int b = 0;
    for (; b + 4 <= count && block[b + 3].count == L; b += 4) {
      load_lanes<4, kRange>(block[b], b, x, range, next);
    }
    for (; b + 2 <= count && block[b + 1].count == L; b += 2) {
      load_lanes<2, kRange>(block[b], b, x, range, next);
    }
    for (; b < count; ++b) load_lanes<1, kRange>(block[b], b, x, range, next);
  }

  /// Loads N consecutive blocks.
  template <int N, bool kRange>
  SK_INLINE void load_lanes(const LaneBlock& block, int b, const LaneTile<A>& x, LaneRange<A>* range,
                            Ahead& next) const {
    // Local copies: the compiler must assume that stores of vectors may change this object.
    const int classes = classes_;
    const int64_t step = rows_.class_stride;
    const T* p = at(block.first);
    Reg* to[N];
    LaneRange<A> seen[N];
    for (int k = 0; k < N; ++k) {
      to[k] = x[b + k];
      seen[k].begin();
    }
    for (int c = 0; c < classes; ++c, p += step) {
      for (int k = 0; k < N; ++k) {
        const Reg v = N > 1 || block.count == L ? S::load(p + k * L) : S::load(p, block.count, 0);
        to[k][c] = v;
        if constexpr (kRange) {
          seen[k].take(v);
        } else {
          next.fetch_line();
        }
      }
    }
    if constexpr (kRange) {
      for (int k = 0; k < N; ++k) range[b + k].set(seen[k]);
    }
  }

  SK_INLINE void load_rows(const LaneBlock& block, Reg* x, LaneRange<A>& seen) const {
    const int classes = classes_;
    const int64_t step = step_;
    const T* const base = at(block.first);
    if (block.count == L && block.one_slice && base + (L - 1) * step + round_up(classes) <= readable_end_) {
      int start = 0;
      for (; start + W <= round_up(classes); start += W) {
        const T* const p = base + start;
        take<W>(start, classes, x, seen, [&](int l) __attribute__((always_inline)) { return p + l * step; });
      }
      if (W > P && start < classes) {
        const T* const p = base + start;
        take<P>(start, classes, x, seen, [&](int l) __attribute__((always_inline)) { return p + l * step; });
      }
      return;
    }
    const T* row[L];
    find(block, row);
    Piece pieces[L] = {};
    for (int start = 0; start < classes; start += P) {
      for (int c = start; c < start + P && c < classes; ++c) {
        for (int l = 0; l < block.count; ++l) pieces[l].of[c - start] = row[l][c];
      }
      take<P>(start, classes, x, seen, [&](int l) __attribute__((always_inline)) { return pieces[l].of; });
    }
  }

  static SK_INLINE int round_up(int classes) { return (classes + P - 1) / P * P; }
  /// Loads vectors start..start+N-1 of a block, up to the last class.
  template <int N, class Row>
  static SK_INLINE void take(int start, int classes, Reg* x, LaneRange<A>& seen, Row row) {
    Reg v[N];
    S::load_columns(row, v);
    SK_UNROLL
    for (int k = 0; k < N; ++k) {
      if (start + k >= classes) break;
      x[start + k] = v[k];
      seen.take(v[k]);
    }
  }

  /// Loads a block whose rows are all the same row.
  SK_INLINE void load_repeated(const LaneBlock& block, Reg* x, LaneRange<A>& seen) const {
    const T* const row = at(block.first);
    for (int c = 0; c < classes_; ++c) {
      x[c] = S::broadcast(widen(row[c * rows_.class_stride]));
      seen.take(x[c]);
    }
  }
  SK_INLINE void load_spread(const LaneBlock& block, Reg* x, LaneRange<A>& seen) const {
    T* row[L];
    find(block, row);
    A lanes[L] = {};
    for (int l = 0; l < block.count; ++l) lanes[l] = widen(*row[l]);
    const Reg v = S::load(lanes);
    for (int c = 0; c < classes_; ++c) x[c] = v;
    seen.take(v);
  }
  SK_INLINE void load_elements(const LaneBlock& block, Reg* x, LaneRange<A>& seen) const {
    T* row[L];
    find(block, row);
    A lanes[L] = {};
    for (int c = 0; c < classes_; ++c) {
      for (int l = 0; l < block.count; ++l) lanes[l] = widen(row[l][c * rows_.class_stride]);
      x[c] = Simd<A>::load(lanes);
      seen.take(x[c]);
    }
  }
  int64_t end_;
  const T* readable_end_ = nullptr;
};

}  // namespace
}  // namespace softkern::cpu
