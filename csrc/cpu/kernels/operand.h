// SPDX-License-Identifier: Apache-2.0
// Rows of a tensor as contiguous memory: in place where the classes lie side by side, else packed in tiles
// of rows, because neighbouring rows of a strided tensor share cache lines.
#pragma once

#include "row.h"

namespace softkern::cpu {
namespace {

/// Hands out pieces of a call's scratch memory.
class Arena {
 public:
  explicit Arena(void* memory) : next_(reinterpret_cast<uintptr_t>(memory)) {}
  template <class T>
  T* take(int64_t count) {
    const uintptr_t aligned = (next_ + 63) & ~static_cast<uintptr_t>(63);
    next_ = aligned + static_cast<size_t>(count) * sizeof(T);
    return reinterpret_cast<T*>(aligned);
  }

 private:
  uintptr_t next_;
};

template <class T>
class Operand {
  using S = Simd<Compute<T>>;
  using Reg = typename S::Reg;
  static constexpr int L = S::kLanes;

 public:
  Operand(const Rows& rows, const Shape& shape, const Range& range, Arena& arena)
      : rows_(rows), shape_(shape), pitch_(row_pitch(shape.classes)) {
    if (is_packed(rows_)) {
      tile_ = arena.take<T>(tile_rows(shape, range.end - range.begin, sizeof(T)) * pitch_);
    }
  }

  bool given() const { return rows_.data != nullptr; }

  /// Row r; after stage(first, count) for a tile that holds it.
  T* row(int64_t r, int64_t first) const { return is_packed(rows_) ? tile_ + (r - first) * pitch_ : at(r); }

  /// The row after r, to be fetched into the cache ahead of its time; null where there is none in place.
  const T* next(int64_t r, int64_t end) const { return is_packed(rows_) || r + 1 >= end ? nullptr : at(r + 1); }

  /// Fetch rows first..first+count-1 for reading.
  SK_CALL void stage(int64_t first, int64_t count) const {
    if (!is_packed(rows_)) return;
    if (!side_by_side()) {
      T* from[kMostTileRows];
      find(first, count, from);
      for (int64_t c = 0; c < shape_.classes; ++c) {
        for (int64_t w = 0; w < count; ++w) tile_[w * pitch_ + c] = from[w][c * rows_.class_stride];
      }
      return;
    }
    const T* base = at(first);
    for (int64_t c = 0; c < shape_.classes; c += L) {
      const int n = static_cast<int>(shape_.classes - c < L ? shape_.classes - c : L);
      // No hardware prefetcher follows strides of more than a page.
      const T* ahead = base + (c + 2 * L < shape_.classes ? c + 2 * L : c) * rows_.class_stride;
      for (int64_t w = 0; w < count; w += L) {
        const int lanes = static_cast<int>(count - w < L ? count - w : L);
        Reg v[L];
        for (int k = 0; k < L; ++k) {
          const T* p = base + (c + (k < n ? k : 0)) * rows_.class_stride + w;
          v[k] = lanes == L ? S::load(p) : S::load(p, lanes, 0);
          __builtin_prefetch(ahead + (k < n ? k : 0) * rows_.class_stride + w);
        }
        S::transpose(v);
        // Whole vectors: a packed row ends with more than one vector of free space.
        for (int l = 0; l < lanes; ++l) S::store(tile_ + (w + l) * pitch_ + c, v[l]);
      }
    }
  }

  /// Put written rows where they belong.
  SK_CALL void flush(int64_t first, int64_t count) const {
    if (!is_packed(rows_)) return;
    if (!side_by_side()) {
      T* to[kMostTileRows];
      find(first, count, to);
      for (int64_t c = 0; c < shape_.classes; ++c) {
        for (int64_t w = 0; w < count; ++w) to[w][c * rows_.class_stride] = tile_[w * pitch_ + c];
      }
      return;
    }
    T* base = at(first);
    for (int64_t c = 0; c < shape_.classes; c += L) {
      const int n = static_cast<int>(shape_.classes - c < L ? shape_.classes - c : L);
      for (int64_t w = 0; w < count; w += L) {
        const int lanes = static_cast<int>(count - w < L ? count - w : L);
        Reg v[L];
        for (int l = 0; l < L; ++l) v[l] = S::load(tile_ + (w + (l < lanes ? l : 0)) * pitch_ + c);
        S::transpose(v);
        for (int k = 0; k < n; ++k) {
          T* p = base + (c + k) * rows_.class_stride + w;
          if (lanes == L) {
            S::store(p, v[k]);
          } else {
            S::store(p, v[k], lanes);
          }
        }
      }
    }
  }

 private:
  T* at(int64_t r) const {
    T* base = static_cast<T*>(rows_.data);
    if (shape_.inner == 1) return base + r * rows_.outer_stride;
    return base + r / shape_.inner * rows_.outer_stride + r % shape_.inner * rows_.inner_stride;
  }
  /// Whether the rows of a tile lie side by side, so that vectors run over rows: for_each_tile keeps tiles
  /// within a slice where there are enough of them.
  bool side_by_side() const {
    return shape_.inner == 1 ? rows_.outer_stride == 1
                             : rows_.inner_stride == 1 && shape_.inner >= kLeastTileRows;
  }
  void find(int64_t first, int64_t count, T** row) const {
    for (int64_t w = 0; w < count; ++w) row[w] = at(first + w);
  }

  Rows rows_;
  Shape shape_;
  int64_t pitch_;
  T* tile_ = nullptr;
};

/// body(first, count) for the tiles of a range.
template <class T, class Body>
SK_INLINE void for_each_tile(const Shape& shape, const Range& range, Body body) {
  const bool slices = shape.inner >= kLeastTileRows;
  const int64_t most = tile_rows(shape, range.end - range.begin, sizeof(T));
  for (int64_t first = range.begin; first < range.end;) {
    int64_t end = slices ? (first / shape.inner + 1) * shape.inner : range.end;
    if (end > range.end) end = range.end;
    const int64_t count = end - first < most ? end - first : most;
    body(first, count);
    first += count;
  }
}

/// The row's memory for exp in the compute type: the output row where the types agree, else scratch.
template <class A>
SK_INLINE A* compute_row(A* output, A*) {
  return output;
}
template <class A, class T>
SK_INLINE A* compute_row(T*, A* scratch) {
  return scratch;
}

template <class T>
SK_INLINE Compute<T>* take_compute_row(Arena& arena, int64_t classes) {
  return sizeof(T) < sizeof(Compute<T>) ? arena.take<Compute<T>>(row_pitch(classes)) : nullptr;
}

}  // namespace
}  // namespace softkern::cpu
