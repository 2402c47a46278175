// SPDX-License-Identifier: Apache-2.0
// Stores blocks of vectors, one row per lane, to rows in memory.
#pragma once

#include "block.h"
#include "tiles.h"

namespace softkern::cpu {
namespace {

template <class T>
class LaneOutput : public LaneRows<T> {
  using Base = LaneRows<T>;
  using A = Compute<T>;
  using S = Simd<A>;
  using Reg = typename S::Reg;
  using Piece = typename Base::Piece;
  static constexpr int L = Base::L, P = Base::P, W = Base::W;
  using Base::at, Base::classes_, Base::find, Base::has_adjacent_rows, Base::is_contiguous, Base::rows_,
      Base::step_;
  static constexpr int kAhead = 32;  // classes
  static constexpr int kStreamed = kWideRowBytes / static_cast<int>(sizeof(A));

 public:
  using Base::given;
  /// `stream`: blocks are written past the caches if vectors run over rows, and also if their rows are
  /// contiguous with more than kLaneClasses and at most kStreamed classes.
  LaneOutput(const Rows& rows, const Shape& shape, bool stream) : Base(rows, shape), stream_(stream) {}

  /// write(b, body) calls body(value), and value(c) computes class c of block b. The result may be stored in
  /// x[b][c] before value(c + 1) is called: value(c) reads no element of x but this one.
  template <class Write>
  SK_CALL void store(const LaneBlock* block, int count, const LaneTile<A>& x, const Write& write) const {
    int b = 0;
    for (; has_adjacent_rows(*block) && b + 1 < count && block[b + 1].count == L; b += 2) {
      write(b, [&](auto low) __attribute__((always_inline)) {
        write(b + 1, [&](auto high) __attribute__((always_inline)) { store_pair(block[b], low, high); });
      });
    }
    for (; b < count; ++b) {
      write(b, [&](auto value) __attribute__((always_inline)) {
        if (is_contiguous(block[b])) {
          store_contiguous(block[b], value);
        } else {
          for (int c = 0; c < classes_; ++c) x[b][c] = value(c);
          store_block(block[b], x[b]);
        }
      });
    }
  }

 private:
  /// Stores two consecutive blocks.
  template <class Low, class High>
  SK_INLINE void store_pair(const LaneBlock& block, Low low, High high) const {
    const int classes = classes_;
    const int64_t step = rows_.class_stride;
    T* p = at(block.first);
    const bool stream = stream_ && is_aligned(p, rows_);
    for (int c = 0; c < classes; ++c, p += step) {
      // No hardware prefetcher follows strides of more than a page. As in ahead(), the cache line in which a
      // vector ends is fetched.
      if (!stream && c + kAhead < classes) {
        __builtin_prefetch(p + kAhead * step + L - 1, 1);
        __builtin_prefetch(p + kAhead * step + 2 * L - 1, 1);
      }
      store_lanes(p, low(c), L, stream);
      store_lanes(p + L, high(c), L, stream);
    }
  }
  SK_CALL void store_block(const LaneBlock& block, const Reg* y) const {
    if (has_adjacent_rows(block)) {
      T* p = at(block.first);
      const bool stream = stream_ && is_aligned(p, rows_);
      for (int c = 0; c < classes_; ++c, p += rows_.class_stride) store_lanes(p, y[c], block.count, stream);
    } else if (rows_.class_stride == 1) {
      store_rows(block, y);
    } else {
      store_elements(block, y);
    }
  }

  template <class Value>
  SK_INLINE void store_contiguous(const LaneBlock& block, Value value) const {
    T* const rows = at(block.first);
    // Non-temporal stores write whole cache lines, so the block is assembled on the stack first. With few
    // classes, this costs more time than it saves.
    const bool past = stream_ && classes_ > kLaneClasses && classes_ <= kStreamed;
    alignas(64) T whole[L * kStreamed];
    put_rows(past ? whole : rows, value);
    if (!past) return;
    stream_vectors<A>(rows, L * classes_, [&](auto at, int64_t i) __attribute__((always_inline)) {
      return at.load(whole + i, 0);
    });
  }
  /// Whole pieces are stored, which may overwrite the beginning of the next row. So the next row is stored
  /// later: last classes first, and rows upwards.
  template <class Value>
  SK_INLINE void put_rows(T* rows, Value value) const {
    const int classes = classes_, wide = classes / W * W;
    const int narrow = classes / P * P;
    if (narrow < classes) put_last(rows + narrow, narrow, value);
    if (W > P && wide < narrow) put_whole<P>(rows + wide, wide, value);
    for (int start = wide - W; start >= 0; start -= W) put_whole<W>(rows + start, start, value);
  }
  template <int N, class Value>
  SK_INLINE void put_whole(T* p, int start, Value value) const {
    const int classes = classes_;
    Reg v[N];
    SK_UNROLL
    for (int k = 0; k < N; ++k) v[k] = value(start + k);
    S::store_columns([&](int l) __attribute__((always_inline)) { return p + l * classes; }, v);
  }
  /// Stores a partial piece. That of the last row goes through memory on the stack, because nothing may be
  /// written past its end.
  template <class Value>
  SK_INLINE void put_last(T* p, int start, Value value) const {
    const int classes = classes_;
    Piece piece;
    put(start, classes, value,
        [&](int l) __attribute__((always_inline)) { return l == L - 1 ? piece.of : p + l * classes; });
    T* const last = p + (L - 1) * static_cast<int64_t>(classes);
    for (int c = 0; c < classes - start; ++c) last[c] = piece.of[c];
  }
  SK_INLINE void store_rows(const LaneBlock& block, const Reg* y) const {
    T* row[L];
    find(block, row);
    Piece pieces[L];
    for (int start = 0; start < classes_; start += P) {
      put(
          start, classes_, [&](int c) __attribute__((always_inline)) { return y[c]; },
          [&](int l) __attribute__((always_inline)) { return pieces[l].of; });
      for (int c = start; c < start + P && c < classes_; ++c) {
        for (int l = 0; l < block.count; ++l) row[l][c] = pieces[l].of[c - start];
      }
    }
  }

  template <class Value, class Row>
  static SK_INLINE void put(int start, int classes, Value value, Row row) {
    Reg v[P];
    v[0] = value(start);
    SK_UNROLL
    for (int k = 1; k < P; ++k) v[k] = start + k < classes ? value(start + k) : v[k - 1];
    S::store_columns(row, v);
  }

  SK_INLINE void store_elements(const LaneBlock& block, const Reg* y) const {
    T* row[L];
    find(block, row);
    A lanes[L];
    for (int c = 0; c < classes_; ++c) {
      Simd<A>::store(lanes, y[c]);
      for (int l = 0; l < block.count; ++l) row[l][c * rows_.class_stride] = Narrow<T>::from(lanes[l]);
    }
  }

  bool stream_;
};

}  // namespace
}  // namespace softkern::cpu
