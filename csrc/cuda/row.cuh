// SPDX-License-Identifier: Apache-2.0
// A thread's part of a row, V classes at a time: chunk k of the row belongs to thread k % size. Kept in
// registers between the steps, or read again for each. Steps and names are those of the CPU's kernels: 1 max,
// 2 sum-exp, 3 write.
#pragma once

#include "plan.h"
#include "shifted.cuh"
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

template <class T, Access kAccess>
constexpr int chunk_of() {
  return kAccess == Access::kElements ? 1 : kVector<T>;
}

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

template <Access kAccess, class T, class Index, int V>
SK_INLINE void store_chunk(const Span<T>& out, Index c, const Compute<T> (&v)[V]) {
  if constexpr (kAccess == Access::kShifted) {
    store_shifted(out.at, static_cast<Index>(out.classes), c, v);
  } else {
    out.store(c, v);
  }
}

/// E elements in registers. Of 16 bits and by 16 bytes they stay packed as they are in memory, in half of the
/// registers, and what is made of them is not kept.
template <class T, Access kAccess, int E>
class KeptRow {
  static constexpr int V = chunk_of<T, kAccess>();
  static constexpr bool kPacked = sizeof(T) == 2 && kAccess != Access::kElements;
  static_assert(E % V == 0);
  using A = Compute<T>;
  using Chunk = A[V];

 public:
  static constexpr bool kKeeps = true, kHoldsTerms = !kPacked;
  template <class Team>
  explicit SK_INLINE KeptRow(const Team& team) : rank_(team.rank()), size_(team.size()) {}
  SK_INLINE void load(const Span<T>& row, A fill) {
    if constexpr (kPacked) {
      load_words(row, fill, chunks_);
    } else if constexpr (kAccess == Access::kShifted) {
      Words words[E / V];
      load_words(row, fill, words);
      SK_UNROLL
      for (int j = 0; j < E / V; ++j) unpack<T>(words[j], chunks_[j]);
    } else {
      SK_UNROLL
      for (int j = 0; j < E / V; ++j) row.load(at(j), chunks_[j], fill);
    }
  }
  /// f(v, c) for chunks v at class c, those behind the row's end too; what f makes of them is kept if not
  /// packed.
  template <class F>
  SK_INLINE void each(F f) {
    SK_UNROLL
    for (int j = 0; j < E / V; ++j) {
      with(j, [&](Chunk& v) { f(v, at(j)); });
    }
  }
  /// The same, and what f makes of them goes to `out`.
  template <class F>
  SK_INLINE void write(const Span<T>& out, F f) {
    SK_UNROLL
    for (int j = 0; j < E / V; ++j) {
      with(j, [&](Chunk& v) {
        f(v, at(j));
        store_chunk<kAccess>(out, at(j), v);
      });
    }
  }
  /// Both with another row of the same chunks, f(v, w).
  template <class F>
  SK_INLINE void each_with(KeptRow& other, F f) {
    SK_UNROLL
    for (int j = 0; j < E / V; ++j) {
      with(j, [&](Chunk& v) { other.with(j, [&](Chunk& w) { f(v, w); }); });
    }
  }
  template <class F>
  SK_INLINE void write_with(KeptRow& other, const Span<T>& out, F f) {
    SK_UNROLL
    for (int j = 0; j < E / V; ++j) {
      with(j, [&](Chunk& v) {
        other.with(j, [&](Chunk& w) { f(v, w); });
        store_chunk<kAccess>(out, at(j), v);
      });
    }
  }

 private:
  template <class F>
  SK_INLINE void with(int j, F f) {
    if constexpr (kPacked) {
      Chunk v;
      // Each time anew: to keep both would take more registers than what is not packed.
      SK_UNROLL
      for (uint32_t& word : chunks_[j].of) forget(word);
      unpack<T>(chunks_[j], v);
      f(v);
    } else {
      f(chunks_[j]);
    }
  }
  SK_INLINE void load_words(const Span<T>& row, A fill, Words (&words)[E / V]) const {
    if constexpr (kAccess == Access::kShifted) {
      load_shifted(row.at, static_cast<int>(row.classes), at(0), size_ * V, words, narrow<T>(fill));
    } else {
      const uint32_t fill_pair = narrow_pair<T>(fill, fill);
      SK_UNROLL
      for (int j = 0; j < E / V; ++j) {
        words[j] = {{fill_pair, fill_pair, fill_pair, fill_pair}};
        if (at(j) < static_cast<int>(row.classes)) {
          words[j] = *in_global_memory(reinterpret_cast<const Words*>(row.at + at(j)));
        }
      }
    }
  }
  SK_INLINE int at(int j) const { return (rank_ + j * size_) * V; }
  std::conditional_t<kPacked, Words, Chunk> chunks_[E / V];
  int rank_, size_;
};

/// Read from memory in every step.
template <class T, Access kAccess, int kTensors>
class StreamedRow {
  static constexpr int V = chunk_of<T, kAccess>();
  using A = Compute<T>;
  // Chunks that are asked for before the first is used: 64 bytes of what is computed with, or 32 without
  // vectors, of all tensors.
  static constexpr int kAtOnce = (V == 1 ? 32 : 64 / V) / static_cast<int>(sizeof(A)) / kTensors;

 public:
  static constexpr bool kKeeps = false, kHoldsTerms = false;
  template <class Team>
  explicit SK_INLINE StreamedRow(const Team& team)
      : first_(static_cast<int64_t>(team.rank()) * V), step_(team.size() * V) {}
  SK_INLINE void load(const Span<T>& row, A fill) {
    row_ = row;
    fill_ = fill;
  }
  /// f(v, c) for some chunks v[j] at the classes c + j * step().
  template <class F>
  SK_INLINE void each_block(F f) const {
    go(row_.classes, [&](int64_t c) {
      A v[kAtOnce][V];
      ask(v, c);
      f(v, c);
    });
  }
  SK_INLINE int64_t step() const { return step_; }
  template <class F>
  SK_INLINE void write(const Span<T>& out, F f) const {
    // Rows that are not read, those that are ignored, are written.
    go(out.classes, [&](int64_t c) {
      A v[kAtOnce][V];
      ask(v, c);
      SK_UNROLL
      for (int j = 0; j < kAtOnce; ++j) {
        f(v[j], c + j * step_);
        store_chunk<kAccess>(out, c + j * step_, v[j]);
      }
    });
  }
  template <class F>
  SK_INLINE void each_with(const StreamedRow& other, F f) const {
    go(row_.classes, [&](int64_t c) {
      A v[kAtOnce][V], w[kAtOnce][V];
      ask(v, c);
      other.ask(w, c);
      SK_UNROLL
      for (int j = 0; j < kAtOnce; ++j) f(v[j], w[j]);
    });
  }
  template <class F>
  SK_INLINE void write_with(const StreamedRow& other, const Span<T>& out, F f) const {
    go(out.classes, [&](int64_t c) {
      A v[kAtOnce][V], w[kAtOnce][V];
      ask(v, c);
      other.ask(w, c);
      SK_UNROLL
      for (int j = 0; j < kAtOnce; ++j) {
        f(v[j], w[j]);
        store_chunk<kAccess>(out, c + j * step_, v[j]);
      }
    });
  }

 private:
  /// f(c) as often for all threads of a warp, which shifted stores take part in together.
  template <class F>
  SK_INLINE void go(int64_t classes, F f) const {
    const int64_t ahead = kAccess == Access::kShifted ? static_cast<int64_t>(threadIdx.x) % kWarp * V : 0;
    for (int64_t c = first_; c - ahead < classes; c += kAtOnce * step_) f(c);
  }
  SK_INLINE void ask(A (&v)[kAtOnce][V], int64_t c) const {
    if constexpr (kAccess == Access::kShifted) {
      Words chunks[kAtOnce];
      load_shifted(row_.at, row_.classes, c, step_, chunks, narrow<T>(fill_));
      SK_UNROLL
      for (int j = 0; j < kAtOnce; ++j) unpack<T>(chunks[j], v[j]);
    } else {
      SK_UNROLL
      for (int j = 0; j < kAtOnce; ++j) row_.load(c + j * step_, v[j], fill_);
    }
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
template <bool kTerms, class A, int V, class E, class Mass>
SK_INLINE void add_chunk(Stats<A>& s, A (&v)[V], int64_t c, const E& terms, A held, const Mass& mass) {
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
template <bool kTerms, class T, class Team, class Row, class Mass>
SK_INLINE Stats<Compute<T>> statistics(Team& team, Row& row, const Mass& mass) {
  using A = Compute<T>;
  Stats<A> s;
  if constexpr (Row::kKeeps) {
    row.each([&](auto& v, auto) {
      for (const A x : v) s.m = larger(s.m, x);
    });
    s.m = team.max_of(s.m) + A(0);  // whether the maximum of zeros is -0 or +0 would depend on their order
    const A held = finite(s.m);
    const TermsOf<T> terms(held);
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
      const TermsOf<T> terms(held);
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
