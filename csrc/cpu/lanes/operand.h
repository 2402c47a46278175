// SPDX-License-Identifier: Apache-2.0
// A row a lane, so that no sum runs across lanes and what is done once a row is a vector operation too: for
// rows of few classes, and for rows with strided classes, which come as vectors over rows already.
#pragma once

#include "order.h"
#include "tiles.h"

namespace softkern::cpu {
namespace {

/// The elements of an operand as blocks of lanes.
template <class T>
class LaneOperand {
  using A = Compute<T>;
  using S = Simd<A>;
  using Reg = typename S::Reg;
  static constexpr int L = S::kLanes, P = S::kPiece, W = S::kWidePiece;
  static_assert(W == P || W == 2 * P);
  static constexpr int kAhead = 32;  // classes
  static constexpr int kStreamed = kWideRowBytes / static_cast<int>(sizeof(A));

 public:
  /// `stream`: written past the caches, where vectors run over rows, and where the rows of a block are
  /// contiguous, if they are neither short of classes nor long.
  LaneOperand(const Rows& rows, const Shape& shape, const Range& range, bool stream = false)
      : rows_(rows),
        shape_(shape),
        stream_(stream),
        classes_(static_cast<int>(shape.classes)),
        step_(shape.inner == 1 ? rows.outer_stride : rows.inner_stride),
        end_(range.end) {
    if (!given() || range.begin >= range.end) return;
    // Rows that follow each other upwards in memory: what lies between two of them is the tensor's own.
    const bool upwards =
        rows.class_stride == 1 && step_ >= classes_ &&
        (shape.inner == 1 || rows.outer_stride >= (shape.inner - 1) * rows.inner_stride + classes_);
    if (upwards) readable_end_ = at(range.end - 1) + classes_;
  }

  bool given() const { return rows_.data != nullptr; }

  void load(const LaneBlock* block, int count, const LaneTile<A>& x) const {
    fetch<false>(block, count, x, nullptr);
  }
  /// And the range of each block.
  void load(const LaneBlock* block, int count, const LaneTile<A>& x, LaneRange<A>* range) const {
    fetch<true>(block, count, x, range);
  }

  /// What is loaded after these blocks, and where hardware does not see it coming: what it prefetches of a
  /// class, or of a row of one or more lines, ends with the page. Else `here`.
  Ahead ahead(const LaneBlock* block, int count, const void* here) const {
    constexpr int64_t kSize = sizeof(T), kVector = L * kSize;
    const int64_t next = block[count - 1].first + block[count - 1].count;
    if (next < end_ && has_adjacent_rows(*block)) {
      // The line where a vector ends: where it begins in another, that one came with the vector before.
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

  /// write(b, body) calls body(value), and value(c) is class c of block b. It may be written to x[b][c]
  /// first, and nothing else of x is read for it that was not read before.
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
    T of[W];
  };

  /// Whether rows are one element apart, so that memory holds vectors over rows.
  bool has_adjacent_rows(const LaneBlock& block) const {
    return block.one_slice && step_ == 1 && rows_.class_stride != 1;
  }

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
    // With a range, exponentials follow: they leave more time for it.
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

  /// N blocks, each of which follows the one before.
  template <int N, bool kRange>
  SK_INLINE void load_lanes(const LaneBlock& block, int b, const LaneTile<A>& x, LaneRange<A>* range,
                            Ahead& next) const {
    // Copies: what vectors are stored to could be this object, for all a compiler knows.
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
  /// Two blocks, the second one of which follows the first.
  template <class Low, class High>
  SK_INLINE void store_pair(const LaneBlock& block, Low low, High high) const {
    const int classes = classes_;
    const int64_t step = rows_.class_stride;
    T* p = at(block.first);
    const bool stream = stream_ && is_aligned(p, rows_);
    for (int c = 0; c < classes; ++c, p += step) {
      // No hardware prefetcher follows strides of more than a page. Where vectors end, as in ahead().
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

  bool is_contiguous(const LaneBlock& block) const {
    return rows_.class_stride == 1 && block.count == L && block.one_slice && step_ == classes_ &&
           classes_ > 1;
  }
  template <class Value>
  SK_INLINE void store_contiguous(const LaneBlock& block, Value value) const {
    T* const rows = at(block.first);
    // What goes past the caches goes in whole lines: the block is put together first. With few classes that
    // takes longer than it saves.
    const bool past = stream_ && classes_ > kLaneClasses && classes_ <= kStreamed;
    alignas(64) T whole[L * kStreamed];
    put_rows(past ? whole : rows, value);
    if (!past) return;
    stream_vectors<A>(rows, L * classes_, [&](auto at, int64_t i) __attribute__((always_inline)) {
      return at.load(whole + i, 0);
    });
  }
  /// Whole pieces are stored, and what that spoils of the next row is stored after it. So last classes first,
  /// and rows upwards.
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
  /// A piece that is not whole: of the last row it is stored by way of memory of our own.
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

  static SK_INLINE int round_up(int classes) { return (classes + P - 1) / P * P; }
  /// Vectors start..start+N-1 of a block, as far as there are classes.
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
  template <class Value, class Row>
  static SK_INLINE void put(int start, int classes, Value value, Row row) {
    Reg v[P];
    v[0] = value(start);
    SK_UNROLL
    for (int k = 1; k < P; ++k) v[k] = start + k < classes ? value(start + k) : v[k - 1];
    S::store_columns(row, v);
  }

  /// Of a block whose rows are one.
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
  SK_INLINE void store_elements(const LaneBlock& block, const Reg* y) const {
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
  bool stream_;
  int classes_;
  int64_t step_, end_;
  const T* readable_end_ = nullptr;
};

}  // namespace
}  // namespace softkern::cpu
