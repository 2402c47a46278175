// SPDX-License-Identifier: Apache-2.0
// Rows of a tensor as contiguous memory: in place where the classes lie side by side, else packed in tiles
// of kTileRows rows, because neighbouring rows of a strided tensor share cache lines.
#pragma once

#include "../scalar.h"

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
 public:
  Operand(const Rows& rows, const Shape& shape, const Range& range, Arena& arena)
      : rows_(rows), shape_(shape), pitch_(row_pitch(shape.classes)) {
    if (is_packed(rows_)) tile_ = arena.take<T>(tile_rows(range.end - range.begin) * pitch_);
  }

  bool given() const { return rows_.data != nullptr; }

  /// Row r; after stage(first, count) for a tile that holds it.
  T* row(int64_t r, int64_t first) const { return is_packed(rows_) ? tile_ + (r - first) * pitch_ : at(r); }

  /// Fetch rows first..first+count-1 for reading.
  void stage(int64_t first, int64_t count) const {
    if (!is_packed(rows_)) return;
    const T* from[kTileRows];
    for (int64_t w = 0; w < count; ++w) from[w] = at(first + w);
    for (int64_t c = 0; c < shape_.classes; ++c) {
      for (int64_t w = 0; w < count; ++w) tile_[w * pitch_ + c] = from[w][c * rows_.class_stride];
    }
  }

  /// Put written rows where they belong.
  void flush(int64_t first, int64_t count) const {
    if (!is_packed(rows_)) return;
    T* to[kTileRows];
    for (int64_t w = 0; w < count; ++w) to[w] = at(first + w);
    for (int64_t c = 0; c < shape_.classes; ++c) {
      for (int64_t w = 0; w < count; ++w) to[w][c * rows_.class_stride] = tile_[w * pitch_ + c];
    }
  }

 private:
  T* at(int64_t r) const {
    T* base = static_cast<T*>(rows_.data);
    if (shape_.inner == 1) return base + r * rows_.outer_stride;
    return base + r / shape_.inner * rows_.outer_stride + r % shape_.inner * rows_.inner_stride;
  }

  Rows rows_;
  Shape shape_;
  int64_t pitch_;
  T* tile_ = nullptr;
};

/// body(first, count) for the tiles of a range.
template <class Body>
SK_INLINE void for_each_tile(const Range& range, Body body) {
  for (int64_t first = range.begin; first < range.end; first += kTileRows) {
    body(first, tile_rows(range.end - first));
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
