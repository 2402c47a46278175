// SPDX-License-Identifier: Apache-2.0
// A row a lane, so that no sum runs across lanes and what is done once a row is a vector operation too: for
// rows of few classes, and for rows whose classes lie apart, which come as vectors over rows already.
#pragma once

#include "lane_order.h"

namespace softkern::cpu {
namespace {

/// Rows first..first+count-1, count <= kLanes. one_slice: they have the same outer index.
struct LaneBlock {
  int64_t first;
  int count;
  bool one_slice;
};

/// body(blocks, count) for the rows of a range, count <= most <= kMostBlocks.
template <class A, class Body>
SK_INLINE void for_each_group(const Shape& shape, const Range& range, int most, Body body) {
  constexpr int64_t L = Simd<A>::kLanes;
  // Where a slice has less rows than there are lanes, blocks run across slices.
  const bool slices = shape.inner >= L;
  LaneBlock blocks[kMostBlocks];
  for (int64_t first = range.begin; first < range.end;) {
    int64_t end = slices ? (first / shape.inner + 1) * shape.inner : range.end;
    if (end > range.end) end = range.end;
    int count = 0;
    for (; count < most && first < end; ++count) {
      const int64_t rows = end - first < L ? end - first : L;
      blocks[count] = {first, static_cast<int>(rows), slices || shape.inner == 1};
      first += rows;
    }
    body(blocks, count);
  }
}

/// Memory of a call: two tiles. On the stack, for rows of few classes side by side.
template <class A>
class SmallTiles {
  using Reg = typename Simd<A>::Reg;
  static constexpr int kBlocks = 8, kTile = kBlocks * kLaneClasses;

 public:
  int blocks() const { return kBlocks; }
  LaneTile<A> first() { return {memory_, kLaneClasses}; }
  LaneTile<A> second() { return {memory_ + kTile, kLaneClasses}; }

 private:
  Reg memory_[2 * kTile];
};

/// In the range's scratch memory, as large as a cache allows.
template <class A>
class WideTiles {
  using Reg = typename Simd<A>::Reg;

 public:
  WideTiles(const Range& range, const Shape& shape)
      : classes_(shape.classes), blocks_(tile_blocks(shape.classes, range.end - range.begin)) {
    Arena arena(range.scratch);
    memory_ = reinterpret_cast<Reg*>(arena.take<A>(2 * blocks_ * classes_ * Simd<A>::kLanes));
  }
  int blocks() const { return blocks_; }
  LaneTile<A> first() const { return {memory_, classes_}; }
  LaneTile<A> second() const { return {memory_ + blocks_ * classes_, classes_}; }

 private:
  int64_t classes_;
  int blocks_;
  Reg* memory_;
};

/// The elements of an operand as blocks of lanes.
template <class T>
class LaneOperand {
  using A = Compute<T>;
  using S = Simd<A>;
  using Reg = typename S::Reg;
  static constexpr int L = S::kLanes, P = S::kPiece;
  static constexpr int kAhead = 32;  // classes

 public:
  /// `stream`: written past the caches, where vectors run over rows.
  LaneOperand(const Rows& rows, const Shape& shape, const Range& range, bool stream = false)
      : rows_(rows),
        shape_(shape),
        stream_(stream),
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

  SK_CALL void load(const LaneBlock* block, int count, const LaneTile<A>& x) const {
    if (block->one_slice && step_ == 1 && rows_.class_stride != 1) {
      for (int c = 0; c < classes_; ++c) {
        const T* p = at(block->first) + c * rows_.class_stride;
        // The next group's: what hardware prefetches of a class ends with the page.
        const int64_t ahead = static_cast<int64_t>(count) * L;
        for (int b = 0; b < count; ++b, p += L) {
          __builtin_prefetch(p + ahead, 0, 2);
          x[b][c] = block[b].count == L ? S::load(p) : S::load(p, block[b].count, 0);
        }
      }
    } else if (rows_.class_stride == 1) {
      for (int b = 0; b < count; ++b) load_rows(block[b], x[b]);
    } else {
      for (int b = 0; b < count; ++b) load_elements(block[b], x[b]);
    }
  }

  SK_CALL void store(const LaneBlock* block, int count, const LaneTile<A>& y) const {
    if (block->one_slice && step_ == 1 && rows_.class_stride != 1) {
      const bool stream = stream_ && is_aligned(at(block->first), rows_);
      for (int c = 0; c < classes_; ++c) {
        T* p = at(block->first) + c * rows_.class_stride;
        const int64_t ahead = !stream && c + kAhead < classes_ ? kAhead * rows_.class_stride : 0;
        for (int b = 0; b < count; ++b, p += L) {
          if (ahead) __builtin_prefetch(p + ahead, 1);
          store_lanes(p, y[b][c], block[b].count, stream);
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
  bool stream_;
  int classes_;
  int64_t step_;
  const T* readable_end_ = nullptr;
};

}  // namespace
}  // namespace softkern::cpu
