// SPDX-License-Identifier: Apache-2.0
// Rows of a tensor as contiguous memory: in place if the classes are contiguous. Strided rows are packed in
// tiles of rows, because neighbouring rows of a strided tensor share cache lines.
#pragma once

#include "loop.h"

namespace softkern::cpu {
namespace {

/// Hands out pieces of the scratch memory of a call. Without memory, it counts the bytes that are taken.
class Arena {
  static constexpr uintptr_t kLine = 64, kNowhere = kLine;  // not 0, the address of memory that is not taken

 public:
  Arena() : next_(kNowhere) {}
  explicit Arena(void* memory) : next_(reinterpret_cast<uintptr_t>(memory)) {}
  template <class T>
  T* take(int64_t count) {
    const uintptr_t aligned = (next_ + kLine - 1) / kLine * kLine;
    next_ = aligned + static_cast<size_t>(count) * sizeof(T);
    return reinterpret_cast<T*>(aligned);
  }
  /// Enough for any address of the memory.
  size_t bytes() const { return next_ == kNowhere ? 0 : next_ - kNowhere + kLine - 1; }

 private:
  uintptr_t next_;
};

/// Whether the classes of a row are not contiguous: kernels do not compute such rows in place.
constexpr bool is_strided(const Rows& rows) { return rows.data != nullptr && rows.class_stride != 1; }
/// Whether all classes of a row share one element, as in the upstream gradient of a sum over classes.
constexpr bool is_spread(const Rows& rows) { return rows.data != nullptr && rows.class_stride == 0; }
/// Whether elements are narrower than the compute type.
template <class T>
constexpr bool kIsNarrow = sizeof(T) < sizeof(Compute<T>);

template <class T>
SK_INLINE T* row_at(const Rows& rows, const Shape& shape, int64_t r) {
  T* base = static_cast<T*>(rows.data);
  if (shape.inner == 1) return base + r * rows.outer_stride;
  return base + r / shape.inner * rows.outer_stride + r % shape.inner * rows.inner_stride;
}

/// Whether the vectors over rows from p on are aligned to their size in every class.
template <class T>
SK_INLINE bool is_aligned(const T* p, const Rows& rows) {
  constexpr int64_t L = Simd<Compute<T>>::kLanes;
  return reinterpret_cast<uintptr_t>(p) % (L * sizeof(T)) == 0 && rows.class_stride % L == 0;
}

/// Stores the first `lanes` lanes of v. With `stream`, a whole vector is written past the caches.
template <class T>
SK_INLINE void store_lanes(T* p, const typename Simd<Compute<T>>::Reg& v, int lanes, bool stream) {
  using S = Simd<Compute<T>>;
  if (lanes < S::kLanes) {
    S::store(p, v, lanes);
  } else if (stream) {
    S::stream(p, v);
  } else {
    S::store(p, v);
  }
}

template <class T>
class Operand {
  using S = Simd<Compute<T>>;
  using Reg = typename S::Reg;
  static constexpr int L = S::kLanes, P = S::kPiece;

 public:
  /// `same`: an operand whose tile this one may reuse, because its rows are read before these are written.
  /// `stream`: the rows are written past the caches.
  Operand(const Rows& rows, const Shape& shape, const Range& range, Arena& arena,
          const Operand* same = nullptr, bool stream = false)
      : rows_(rows), shape_(shape), pitch_(row_pitch(shape.classes)), stream_(stream) {
    if (!is_strided(rows_)) return;
    if (same != nullptr && same->tile_ != nullptr) {
      tile_ = same->tile_;
    } else {
      tile_ = arena.take<T>(packed_rows(shape, range.end - range.begin, sizeof(T)) * pitch_);
    }
    if (is_one_element()) pitch_ = 0;
  }

  bool given() const { return rows_.data != nullptr; }
  /// Whether kernels write the rows past the caches, in place. flush() does this for packed rows.
  bool streamed() const { return stream_ && !is_strided(rows_); }

  /// Row r, in place or in the tile that begins with row `first`. Rows that are read must be staged before.
  T* row(int64_t r, int64_t first) const { return is_strided(rows_) ? tile_ + (r - first) * pitch_ : at(r); }

  /// The row after r, for work ahead of time; null if there is none, or if rows are packed.
  const T* next(int64_t r, int64_t end) const {
    return is_strided(rows_) || r + 1 >= end ? nullptr : at(r + 1);
  }

  /// Packs rows first..first+count-1 for reading, if they are strided.
  SK_CALL void stage(int64_t first, int64_t count) const {
    if (!is_strided(rows_)) return;
    if (is_spread(rows_)) {
      spread(first, is_one_element() ? 1 : count);
      return;
    }
    if (!has_adjacent_rows()) {
      T* from[kMostTileRows];
      find(first, count, from);
      for (int64_t c = 0; c < shape_.classes; ++c) {
        for (int64_t w = 0; w < count; ++w) tile_[w * pitch_ + c] = from[w][c * rows_.class_stride];
      }
      return;
    }
    const T* base = at(first);
    for (int64_t c = 0; c < shape_.classes; c += P) {
      const T* p[P];
      // The last piece repeats the last class: a packed row ends with more free space than a piece needs.
      for (int k = 0; k < P; ++k) {
        p[k] = base + (c + k < shape_.classes ? c + k : shape_.classes - 1) * rows_.class_stride;
      }
      // No hardware prefetcher follows strides of more than a page.
      const int64_t ahead = c + kAhead < shape_.classes ? kAhead * rows_.class_stride : 0;
      for (int64_t w = 0; w < count; w += L) {
        Reg v[P];
        const int lanes = static_cast<int>(count - w < L ? count - w : L);
        for (int k = 0; k < P; ++k) {
          v[k] = lanes == L ? S::load(p[k] + w) : S::load(p[k] + w, lanes, 0);
          __builtin_prefetch(p[k] + w + ahead);
        }
        T* const to = tile_ + w * pitch_ + c;
        S::store_columns([&](int l) __attribute__((always_inline)) { return to + l * pitch_; }, v);
      }
    }
  }

  /// Copies packed rows from the tile to the tensor, after they were written.
  SK_CALL void flush(int64_t first, int64_t count) const {
    if (!is_strided(rows_)) return;
    if (!has_adjacent_rows()) {
      T* to[kMostTileRows];
      find(first, count, to);
      for (int64_t c = 0; c < shape_.classes; ++c) {
        for (int64_t w = 0; w < count; ++w) to[w][c * rows_.class_stride] = tile_[w * pitch_ + c];
      }
      return;
    }
    T* base = at(first);
    const bool stream = stream_ && is_aligned(base, rows_);
    for (int64_t c = 0; c < shape_.classes; c += P) {
      for (int64_t w = 0; w < count; w += L) {
        const T* const from = tile_ + w * pitch_ + c;
        Reg v[P];
        S::load_columns([&](int l) __attribute__((always_inline)) { return from + l * pitch_; }, v);
        const int lanes = static_cast<int>(count - w < L ? count - w : L);
        for (int k = 0; k < P && c + k < shape_.classes; ++k) {
          store_lanes(base + (c + k) * rows_.class_stride + w, v[k], lanes, stream);
        }
      }
    }
  }

 private:
  static constexpr int64_t kAhead = 32;  // classes

  T* at(int64_t r) const { return row_at<T>(rows_, shape_, r); }
  /// Whether neighbouring rows of a tile are one element apart, so that vectors run over rows. for_each_tile
  /// keeps tiles within a slice if slices have enough rows.
  bool has_adjacent_rows() const {
    return shape_.inner == 1 ? rows_.outer_stride == 1
                             : rows_.inner_stride == 1 && shape_.inner >= kLeastSliceRows;
  }
  /// Whether all rows are one element, as in the upstream gradient of a sum over everything: one packed row
  /// serves for all.
  bool is_one_element() const {
    return rows_.class_stride == 0 && rows_.inner_stride == 0 && rows_.outer_stride == 0;
  }
  void spread(int64_t first, int64_t count) const {
    for (int64_t w = 0; w < count; ++w) {
      const T element = *at(first + w);
      T* const row = tile_ + w * pitch_;
      for (int64_t c = 0; c < shape_.classes; ++c) row[c] = element;
    }
  }
  void find(int64_t first, int64_t count, T** row) const {
    for (int64_t w = 0; w < count; ++w) row[w] = at(first + w);
  }

  Rows rows_;
  Shape shape_;
  int64_t pitch_;
  bool stream_;
  T* tile_ = nullptr;
};

/// Calls body(first, count) for each tile of a range.
template <class T, class Body>
SK_INLINE void for_each_tile(const Shape& shape, const Range& range, Body body) {
  const bool slices = shape.inner >= kLeastSliceRows;
  const int64_t most = tile_rows(shape, range.end - range.begin, sizeof(T));
  for (int64_t first = range.begin; first < range.end;) {
    int64_t end = slices ? (first / shape.inner + 1) * shape.inner : range.end;
    if (end > range.end) end = range.end;
    const int64_t count = end - first < most ? end - first : most;
    body(first, count);
    first += count;
  }
}

/// Memory for the exponentials of a row in the compute type: scratch memory if there is any, else the output
/// row.
template <class A>
SK_INLINE A* compute_row(A* output, A* scratch) {
  return scratch != nullptr ? scratch : output;
}
template <class A, class T>
SK_INLINE A* compute_row(T*, A* scratch) {
  return scratch;
}

/// Calls finish(r, begin(r)) for the rows [first, first + count), in this order. With `lag`, a row is
/// finished after the next one has begun.
template <class Begin, class Finish>
SK_INLINE void for_each_row(int64_t first, int64_t count, bool lag, Begin begin, Finish finish) {
  const int64_t end = first + count;
  if (!lag) {
    for (int64_t r = first; r < end; ++r) finish(r, begin(r));
    return;
  }
  auto begun = begin(first);
  for (int64_t r = first + 1; r < end; ++r) {
    const auto next = begin(r);
    finish(r - 1, begun);
    begun = next;
  }
  finish(end - 1, begun);
}

/// Memory for the exponentials of rows in the compute type: scratch memory if the types differ, or if the
/// output is written only once and past the caches; else the output row.
template <class T>
class ComputeRows {
  using A = Compute<T>;

 public:
  ComputeRows() = default;
  /// `lag`: that of for_each_row.
  ComputeRows(Arena& arena, int64_t classes, bool stream, bool lag) : pitch_(row_pitch(classes)), lag_(lag) {
    if (stream || kIsNarrow<T>) scratch_ = arena.take<A>((lag ? 2 : 1) * pitch_);
  }
  A* row(int64_t r, T* output) const {
    if (scratch_ != nullptr) return scratch_ + (lag_ ? r & 1 : 0) * pitch_;
    return compute_row(output, static_cast<A*>(nullptr));
  }

 private:
  A* scratch_ = nullptr;
  int64_t pitch_ = 0;
  bool lag_ = false;
};

}  // namespace
}  // namespace softkern::cpu
