// SPDX-License-Identifier: Apache-2.0
// A thread's part of a row, V classes at a time: chunk k of the row belongs to thread k % size. Kept in
// registers between the steps, or read again for each. Steps and names are those of the CPU's kernels: 1 max,
// 2 sum-exp, 3 write.
#pragma once

#include "memory.cuh"
#include "stats.cuh"
#include "team.cuh"

namespace softkern::cuda {
namespace {

/// The rows of a launch.
struct Grid {
  int64_t rows;
  Shape shape;
  Sharing sharing;
};

/// A row in memory. Of V > 1 classes at a time: they lie side by side, 16 bytes aligned, in whole chunks.
template <class T>
struct Span {
  T* at;
  int64_t stride;
  int64_t classes;

  // Where a thread keeps its part, classes are few enough for an int.
  template <int V, class Index>
  SK_INLINE void load(Index c, Compute<T> (&v)[V], Compute<T> fill) const {
    if (c < static_cast<Index>(classes)) {
      if constexpr (V == 1) {
        v[0] = widen(in_global_memory(at)[c * stride]);
      } else {
        load_vector(at + c, v);
      }
    } else {
      SK_UNROLL
      for (int i = 0; i < V; ++i) v[i] = fill;
    }
  }
  template <int V, class Index>
  SK_INLINE void store(Index c, const Compute<T> (&v)[V]) const {
    if (c >= static_cast<Index>(classes)) return;
    if constexpr (V == 1) {
      in_global_memory(at)[c * stride] = narrow<T>(v[0]);
    } else {
      store_vector(at + c, v);
    }
  }
};

/// Row `row` of a tensor; one without classes where it does not exist.
template <class T>
SK_INLINE Span<T> span_of(const Rows& rows, const Grid& grid, int64_t row) {
  if (row >= grid.rows) return {static_cast<T*>(rows.data), rows.class_stride, 0};
  return {row_of<T>(rows, row, grid.shape.inner), rows.class_stride, grid.shape.classes};
}

/// E elements in registers.
template <class T, int V, int E>
class KeptRow {
  static_assert(E % V == 0);
  using A = Compute<T>;

 public:
  static constexpr bool kKeeps = true;
  template <class Team>
  SK_INLINE KeptRow(const Team& team, const Span<T>& row, A fill) : rank_(team.rank()), size_(team.size()) {
    SK_UNROLL
    for (int j = 0; j < E / V; ++j) row.load(at(j), v_[j], fill);
  }
  /// f(v, c) for chunks v at class c, those behind the row's end too; what f makes of them is kept.
  template <class F>
  SK_INLINE void each(F f) {
    SK_UNROLL
    for (int j = 0; j < E / V; ++j) f(v_[j], at(j));
  }
  /// The same, and what f makes of them goes to `out`.
  template <class F>
  SK_INLINE void write(const Span<T>& out, F f) {
    SK_UNROLL
    for (int j = 0; j < E / V; ++j) {
      f(v_[j], at(j));
      out.store(at(j), v_[j]);
    }
  }
  /// Both with another row of the same chunks, f(v, w).
  template <class F>
  SK_INLINE void each_with(KeptRow& other, F f) {
    SK_UNROLL
    for (int j = 0; j < E / V; ++j) f(v_[j], other.v_[j]);
  }
  template <class F>
  SK_INLINE void write_with(KeptRow& other, const Span<T>& out, F f) {
    SK_UNROLL
    for (int j = 0; j < E / V; ++j) {
      f(v_[j], other.v_[j]);
      out.store(at(j), v_[j]);
    }
  }

 private:
  SK_INLINE int at(int j) const { return (rank_ + j * size_) * V; }
  A v_[E / V][V];
  int rank_, size_;
};

/// Read from memory in every step.
template <class T, int V, int kTensors>
class StreamedRow {
  using A = Compute<T>;
  // Chunks that are asked for before the first is used: 64 bytes of what is computed with, or 32 without
  // vectors, of all tensors.
  static constexpr int kAtOnce = (V == 1 ? 32 : 64 / V) / static_cast<int>(sizeof(A)) / kTensors;

 public:
  static constexpr bool kKeeps = false;
  template <class Team>
  SK_INLINE StreamedRow(const Team& team, const Span<T>& row, A fill)
      : row_(row), fill_(fill), first_(static_cast<int64_t>(team.rank()) * V), step_(team.size() * V) {}
  /// f(v, c) for some chunks v[j] at the classes c + j * step().
  template <class F>
  SK_INLINE void each_block(F f) const {
    for (int64_t c = first_; c < row_.classes; c += kAtOnce * step_) {
      A v[kAtOnce][V];
      load(v, c);
      f(v, c);
    }
  }
  SK_INLINE int64_t step() const { return step_; }
  template <class F>
  SK_INLINE void write(const Span<T>& out, F f) const {
    // Rows that are not read, those that are ignored, are written.
    for (int64_t c = first_; c < out.classes; c += kAtOnce * step_) {
      A v[kAtOnce][V];
      load(v, c);
      SK_UNROLL
      for (int j = 0; j < kAtOnce; ++j) {
        f(v[j], c + j * step_);
        out.store(c + j * step_, v[j]);
      }
    }
  }
  template <class F>
  SK_INLINE void each_with(const StreamedRow& other, F f) const {
    for (int64_t c = first_; c < row_.classes; c += kAtOnce * step_) {
      A v[kAtOnce][V], w[kAtOnce][V];
      load(v, c);
      other.load(w, c);
      SK_UNROLL
      for (int j = 0; j < kAtOnce; ++j) f(v[j], w[j]);
    }
  }
  template <class F>
  SK_INLINE void write_with(const StreamedRow& other, const Span<T>& out, F f) const {
    for (int64_t c = first_; c < out.classes; c += kAtOnce * step_) {
      A v[kAtOnce][V], w[kAtOnce][V];
      load(v, c);
      other.load(w, c);
      SK_UNROLL
      for (int j = 0; j < kAtOnce; ++j) {
        f(v[j], w[j]);
        out.store(c + j * step_, v[j]);
      }
    }
  }

 private:
  SK_INLINE void load(A (&v)[kAtOnce][V], int64_t c) const {
    SK_UNROLL
    for (int j = 0; j < kAtOnce; ++j) row_.load(c + j * step_, v[j], fill_);
  }
  Span<T> row_;
  A fill_;
  int64_t first_, step_;
};

/// Without target mass that several classes have.
struct NoMass {
  static constexpr bool kSpread = false;
};

/// Statistics of a chunk's classes relative to terms.m's maximum s.m, added to s; kTerms leaves the terms in
/// v.
template <bool kTerms, class A, int V, class Mass>
SK_INLINE void add_chunk(Stats<A>& s, A (&v)[V], int64_t c, const Terms<A>& terms, A held, const Mass& mass) {
  if constexpr (Mass::kSpread) {
    A a[V];
    if (mass.load(c, a)) {
      SK_UNROLL
      for (int i = 0; i < V; ++i) {
        s.mass += a[i];
        s.below = fused(a[i], held - v[i], s.below);
      }
    }
  }
  SK_UNROLL
  for (int i = 0; i < V; ++i) {
    const A e = terms.of(v[i]);
    if (v[i] == s.m) {
      s.ties += 1;
    } else {
      s.rest += e;
    }
    if constexpr (kTerms) v[i] = e;
  }
}

/// 1 max and 2 sum-exp. kTerms: a row that is kept holds its terms afterwards.
template <bool kTerms, class A, class Team, class Row, class Mass>
SK_INLINE Stats<A> statistics(Team& team, Row& row, const Mass& mass) {
  Stats<A> s;
  if constexpr (Row::kKeeps) {
    row.each([&](auto& v, auto) {
      for (const A x : v) s.m = larger(s.m, x);
    });
    s.m = team.max_of(s.m) + A(0);  // whether the maximum of zeros is -0 or +0 would depend on their order
    const A held = finite(s.m);
    const Terms<A> terms(held);
    row.each([&](auto& v, auto c) { add_chunk<kTerms>(s, v, c, terms, held, mass); });
  } else {
    row.each_block([&](auto& block, int64_t c) {
      constexpr int kChunks = sizeof(block) / sizeof(block[0]);
      A m = s.m;
      SK_UNROLL
      for (int j = 0; j < kChunks; ++j) {
        for (const A x : block[j]) m = larger(m, x);
      }
      s.move_to(m + A(0));
      const A held = finite(s.m);
      const Terms<A> terms(held);
      SK_UNROLL
      for (int j = 0; j < kChunks; ++j) {
        add_chunk<false>(s, block[j], c + j * row.step(), terms, held, mass);
      }
    });
    s.move_to(team.max_of(s.m));
  }
  if constexpr (Mass::kSpread) {
    A sums[4] = {s.ties, s.rest, s.mass, s.below};
    team.sum(sums);
    s.ties = sums[0], s.rest = sums[1], s.mass = sums[2], s.below = sums[3];
  } else {
    A sums[2] = {s.ties, s.rest};
    team.sum(sums);
    s.ties = sums[0], s.rest = sums[1];
  }
  return s;
}

}  // namespace
}  // namespace softkern::cuda
