// SPDX-License-Identifier: Apache-2.0
// For few classes: one thread per row, so that work per row is done once. The rows of a block are moved to
// shared memory, and back, in whole cache lines of the tensor. In shared memory the pitch of a row is odd,
// which spreads a warp's rows over all banks.
#pragma once

#include "row.cuh"

namespace softkern::cuda {
namespace {

constexpr int tile_pitch(int64_t classes) { return static_cast<int>(classes) | 1; }

template <class A>
constexpr size_t tile_bytes(int64_t classes, int rows, int tiles) {
  return static_cast<size_t>(tiles) * static_cast<size_t>(rows * tile_pitch(classes)) * sizeof(A);
}

/// The rows of a block, in tile number `index` of its shared memory.
template <class T>
class Tile {
  using A = Compute<T>;

 public:
  SK_INLINE Tile(const Grid& grid, int index) : classes_(static_cast<int>(grid.shape.classes)) {
    pitch_ = tile_pitch(classes_);
    at_ = reinterpret_cast<A*>(shared_memory()) + index * static_cast<int>(blockDim.x) * pitch_;
    first_ = static_cast<int64_t>(blockIdx.x) * static_cast<int>(blockDim.x);
    const int64_t left = grid.rows - first_;
    rows_ = left < static_cast<int>(blockDim.x) ? static_cast<int>(left) : static_cast<int>(blockDim.x);
    inner_ = grid.shape.inner;
  }
  SK_INLINE int64_t row() const { return first_ + static_cast<int>(threadIdx.x); }
  /// The thread's own row in the tile. A row that does not exist has no classes.
  SK_INLINE A* own() const { return at_ + static_cast<int>(threadIdx.x) * pitch_; }
  SK_INLINE int own_classes() const { return static_cast<int>(threadIdx.x) < rows_ ? classes_ : 0; }

  SK_INLINE void load(const Rows& rows) const { move<true>(rows); }
  SK_INLINE void store(const Rows& rows) const { move<false>(rows); }

 private:
  template <bool kIn>
  static SK_INLINE void move_one(T* p, A& here) {
    if constexpr (kIn) {
      here = widen(*in_global_memory(p));
    } else {
      *in_global_memory(p) = narrow<T>(here);
    }
  }

  template <bool kIn>
  SK_INLINE void move(const Rows& rows) const {
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    if (rows.class_stride != 1) {
      // Neighbouring threads read neighbouring rows.
      if (thread >= rows_) return;
      T* p = row_of<T>(rows, row(), inner_);
      for (int c = 0; c < classes_; ++c) move_one<kIn>(p + c * rows.class_stride, own()[c]);
      return;
    }
    const bool contiguous = inner_ == 1
                                ? rows.outer_stride == classes_
                                : rows.inner_stride == classes_ && rows.outer_stride == inner_ * classes_;
    const int count = rows_ * classes_;
    int done = 0;
    T* p = static_cast<T*>(rows.data) + first_ * classes_;
    if (contiguous && reinterpret_cast<uintptr_t>(p) % 16 == 0) {
      constexpr int V = kVector<T>;
      done = count / V * V;
      for (int e = thread * V; e < done; e += threads * V) {
        int r = e / classes_, c = e - r * classes_;
        A v[V];
        if constexpr (kIn) load_vector(p + e, v);
        SK_UNROLL
        for (int i = 0; i < V; ++i) {
          A& here = at_[r * pitch_ + c];
          if constexpr (kIn) {
            here = v[i];
          } else {
            v[i] = here;
          }
          if (++c == classes_) {
            c = 0;
            ++r;
          }
        }
        if constexpr (!kIn) store_vector(p + e, v);
      }
    }
    for (int e = done + thread; e < count; e += threads) {
      const int r = e / classes_, c = e - r * classes_;
      move_one<kIn>(row_of<T>(rows, first_ + r, inner_) + c, at_[r * pitch_ + c]);
    }
  }

  A* at_;
  int classes_, pitch_, rows_;
  int64_t first_, inner_;
};

/// A thread's own row of a tile, whose first `readable` classes are read. Values written to it go to memory
/// with the tile.
template <class T>
class TileRow {
  using A = Compute<T>;

 public:
  static constexpr bool kKeeps = true, kHoldsTerms = true, kInShared = false;
  SK_INLINE TileRow(A* at, int readable, int classes) : at_(at), readable_(readable), classes_(classes) {}
  SK_INLINE A max() const {
    A m = -INFINITY;
    for (int c = 0; c < readable_; ++c) m = larger(m, at_[c]);
    return m;
  }
  template <class F>
  SK_INLINE void each(F f) {
    go(readable_, f);
  }
  template <class F>
  SK_INLINE void write(const Span<T>&, F f) {
    go(classes_, f);
  }
  SK_INLINE bool has(int) const { return true; }
  SK_INLINE void put(const Span<T>&, int c, A v) { at_[c] = v; }
  template <class F>
  SK_INLINE void each_with(TileRow& other, F f) {
    go(readable_, [&](auto& v, int c) {
      A w[1] = {other.at_[c]};
      f(v, w);
    });
  }
  template <class F>
  SK_INLINE void write_with(TileRow& other, const Span<T>&, F f) {
    each_with(other, f);
  }

 private:
  template <class F>
  SK_INLINE void go(int classes, F f) {
    for (int c = 0; c < classes; ++c) {
      A v[1] = {at_[c]};
      f(v, c);
      at_[c] = v[0];
    }
  }
  A* at_;
  int readable_, classes_;
};

}  // namespace
}  // namespace softkern::cuda
