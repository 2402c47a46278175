// SPDX-License-Identifier: Apache-2.0
// A thread's part of a row, V classes at a time. Chunk k of the row belongs to thread k % size, or a warp has
// contiguous classes. The part is kept in registers between the steps, or read again for each step. The steps
// and their names are those of the CPU kernels: 1 max, 2 sum-exp, 3 write.
#pragma once

#include "memory.cuh"
#include "plan.h"
#include "stats.cuh"
#include "team.cuh"

namespace softkern::cuda {
namespace {

/// The rows of a launch.
struct Grid {
  int64_t rows;
  Shape shape;
  TeamShape team;
  SharedRows shared = {};
};

template <class T, Access kAccess>
constexpr int chunk_of() {
  return kAccess == Access::kElements ? 1 : kVector<T>;
}

/// A row in memory. If V > 1 classes are accessed at a time, they are contiguous and aligned to 16 bytes, and
/// the row is a whole number of chunks.
template <class T>
struct Span {
  T* at;
  int64_t stride;
  int64_t classes;

  // Index: a row that threads keep has few enough classes for an int.
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

/// Row `row` of a tensor. If it does not exist, a row without classes.
template <class T>
SK_INLINE Span<T> span_of(const Rows& rows, const Grid& grid, int64_t row) {
  if (row >= grid.rows) return {static_cast<T*>(rows.data), rows.class_stride, 0};
  return {row_of<T>(rows, row, grid.shape.inner), rows.class_stride, grid.shape.classes};
}

/// Keeps E elements in registers. 16-bit elements that are read by 16 bytes stay packed as in memory, in half
/// of the registers. Values computed from them are not kept.
template <class T, Access kAccess, int E>
class KeptRow {
  static constexpr int V = chunk_of<T, kAccess>();
  static constexpr bool kPacked = sizeof(T) == 2 && kAccess != Access::kElements;
  static_assert(E % V == 0);
  using A = Compute<T>;
  using Chunk = A[V];

 public:
  static constexpr bool kKeeps = true, kHoldsTerms = !kPacked, kInShared = false;
  template <class Team>
  explicit SK_INLINE KeptRow(const Team& team) : rank_(team.rank()), size_(team.size()) {}
  SK_INLINE void load(const Span<T>& row, A fill) {
    if constexpr (kPacked) {
      const uint32_t fill_pair = narrow_pair<T>(fill, fill);
      SK_UNROLL
      for (int j = 0; j < E / V; ++j) {
        chunks_[j] = {{fill_pair, fill_pair, fill_pair, fill_pair}};
        if (at(j) < static_cast<int>(row.classes)) {
          chunks_[j] = *in_global_memory(reinterpret_cast<const Words*>(row.at + at(j)));
        }
      }
    } else {
      SK_UNROLL
      for (int j = 0; j < E / V; ++j) row.load(at(j), chunks_[j], fill);
    }
  }
  /// Sets a packed row to 0.
  SK_INLINE void clear() {
    static_assert(kPacked);
    for (Words& chunk : chunks_) chunk = Words{};
  }
  SK_INLINE A max() const {
    if constexpr (kPacked) {
      uint32_t m = chunks_[0].of[0];
      SK_UNROLL
      for (int i = 1; i < E / 2; ++i) m = larger_pair<T>(m, chunks_[i / 4].of[i % 4]);
      return larger_half<T>(m);
    } else {
      A m = -INFINITY;
      SK_UNROLL
      for (int i = 0; i < E; ++i) m = larger(m, chunks_[i / V][i % V]);
      return m;
    }
  }
  /// Calls f(v, c) for each chunk v at class c, including chunks after the end of the row. The row keeps the
  /// changes that f makes to v, unless it is packed.
  template <class F>
  SK_INLINE void each(F f) {
    SK_UNROLL
    for (int j = 0; j < E / V; ++j) {
      with(j, [&](Chunk& v) { f(v, at(j)); });
    }
  }
  /// The same, and stores the changed chunks to `out`.
  template <class F>
  SK_INLINE void write(const Span<T>& out, F f) {
    forget(rank_);  // or the positions of all chunks would be kept since load()
    SK_UNROLL
    for (int j = 0; j < E / V; ++j) {
      with(j, [&](Chunk& v) {
        f(v, at(j));
        out.store(at(j), v);
      });
    }
  }
  /// Whether the thread has class c.
  SK_INLINE bool has(int c) const { return c / V % size_ == rank_; }
  /// After write(): the thread that has class c stores v there.
  SK_INLINE void put(const Span<T>& out, int c, A v) const {
    if (has(c)) out.store(c, {v});
  }
  /// each() and write() with another row of the same chunks: they call f(v, w).
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
        out.store(at(j), v);
      });
    }
  }

 private:
  template <class F>
  SK_INLINE void with(int j, F f) {
    if constexpr (kPacked) {
      Chunk v;
      // Unpacks anew each time: keeping packed and unpacked values would take more registers than an unpacked
      // row.
      SK_UNROLL
      for (uint32_t& word : chunks_[j].of) forget(word);
      unpack<T>(chunks_[j], v);
      f(v);
    } else {
      f(chunks_[j]);
    }
  }
  SK_INLINE int at(int j) const { return (rank_ + j * size_) * V; }
  std::conditional_t<kPacked, Words, Chunk> chunks_[E / V];
  int rank_, size_;
};

/// Reads the row from memory in every step.
template <class T, Access kAccess, int kTensors>
class StreamedRow {
  static constexpr int V = chunk_of<T, kAccess>();
  using A = Compute<T>;
  // Chunks that are loaded before the first one is used: 64 bytes in the compute type, or 32 bytes without
  // vectors, over all tensors.
  static constexpr int kAtOnce = (V == 1 ? 32 : 64 / V) / static_cast<int>(sizeof(A)) / kTensors;

 public:
  static constexpr bool kKeeps = false, kHoldsTerms = false, kInShared = false;
  template <class Team>
  explicit SK_INLINE StreamedRow(const Team& team)
      : first_(static_cast<int64_t>(team.rank()) * V), step_(team.size() * V) {}
  SK_INLINE void load(const Span<T>& row, A fill) {
    row_ = row;
    fill_ = fill;
  }
  /// Calls f(v, c) for kAtOnce chunks v[j], at the classes c + j * step().
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
    // Goes over the classes of `out`: ignored rows are not read, but they are written.
    go(out.classes, [&](int64_t c) {
      A v[kAtOnce][V];
      ask(v, c);
      SK_UNROLL
      for (int j = 0; j < kAtOnce; ++j) {
        f(v[j], c + j * step_);
        out.store(c + j * step_, v[j]);
      }
    });
  }
  SK_INLINE bool has(int64_t c) const { return c / V % (step_ / V) == first_ / V; }
  SK_INLINE void put(const Span<T>& out, int64_t c, A v) const {
    if (has(c)) out.store(c, {v});
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
        out.store(c + j * step_, v[j]);
      }
    });
  }

 private:
  template <class F>
  SK_INLINE void go(int64_t classes, F f) const {
    for (int64_t c = first_; c < classes; c += kAtOnce * step_) f(c);
  }
  SK_INLINE void ask(A (&v)[kAtOnce][V], int64_t c) const {
    SK_UNROLL
    for (int j = 0; j < kAtOnce; ++j) row_.load(c + j * step_, v[j], fill_);
  }
  Span<T> row_;
  A fill_;
  int64_t first_, step_;
};

/// No target mass is spread over several classes.
struct NoMass {
  static constexpr bool kSpread = false, kUniform = false;
};

/// Adds the statistics of a chunk's classes, relative to the maximum s.m, to s. Only the rest is added to
/// `rest`, in units of the terms. With kTerms, v holds the terms afterwards. Without kTies, the rest is the
/// sum of all terms.
template <bool kTerms, bool kTies, class A, int V, class E, class Mass>
SK_INLINE void add_chunk(Stats<A>& s, A& rest, A (&v)[V], int64_t c, const E& terms, A held,
                         const Mass& mass) {
  if constexpr (Mass::kUniform) {
    if (mass.has(c)) {
      s.mass += V;
      SK_UNROLL
      for (int i = 0; i < V; ++i) s.below += held - v[i];
    }
  } else if constexpr (Mass::kSpread) {
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
    if (kTies && v[i] == s.m) {
      s.ties += 1;
    } else {
      rest += e;
    }
    if constexpr (kTerms) v[i] = e;
  }
}

/// 1 max and 2 sum-exp. With kTerms, a kept row holds its terms afterwards. `logit`: one of a kept row, or
/// -inf. Its load has ended when others know the maximum, and may store over it.
template <bool kTerms, bool kTies, class T, class Team, class Row, class Mass>
SK_INLINE Stats<Compute<T>> statistics(Team& team, Row& row, const Mass& mass, Compute<T> logit = -INFINITY) {
  using A = Compute<T>;
  Stats<A> s;
  if constexpr (Row::kKeeps) {
    // Adding 0 turns -0 into +0. Otherwise the sign of a maximum of zeros would depend on their order.
    s.m = team.max_of(larger(row.max(), logit)) + A(0);
    const A held = finite(s.m);
    const TermsOf<T> terms(held);
    A rest = 0;
    const auto add = [&](auto& v, auto c) { add_chunk<kTerms, kTies>(s, rest, v, c, terms, held, mass); };
    if constexpr (Row::kInShared && Row::kHoldsTerms && kTerms) {
      row.change(add);
    } else {
      row.each(add);
    }
    s.rest = rest * TermsOf<T>::kUnit;
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
      A rest = 0;
      SK_UNROLL
      for (int j = 0; j < kChunks; ++j) {
        add_chunk<false, kTies>(s, rest, block[j], c + j * row.step(), terms, held, mass);
      }
      s.rest += rest * TermsOf<T>::kUnit;
    });
    s.move_to(team.max_of(s.m));
  }
  if constexpr (Mass::kUniform) {
    A sums[3] = {s.ties, s.rest, s.below};
    team.sum(sums);
    s.ties = sums[0], s.rest = sums[1], s.below = mass.share * sums[2];
    s.mass = mass.share * static_cast<A>(mass.classes);
  } else if constexpr (Mass::kSpread) {
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
