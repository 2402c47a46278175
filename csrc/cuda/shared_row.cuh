// SPDX-License-Identifier: Apache-2.0
// A row in a block's shared memory, or a block's part of it. Copies bring it there while the block computes
// another row: a thread asks for its next slot as soon as it has used the one that is there. So a block stays
// and goes on with further rows. The steps and their names are those of row.cuh.
#pragma once

#include "row.cuh"

#define SK_TEXT(...) #__VA_ARGS__
#if defined(__CUDACC__)
#define SK_UNROLL_BY(times) _Pragma(SK_TEXT(unroll times))
#else
#define SK_UNROLL_BY(times)
#endif

namespace softkern::cuda {
namespace {

/// How many slots of a row a loop goes over at once. Where results are stored, each takes more registers.
constexpr int kReadAtOnce = 4, kStoredAtOnce = 2;

/// Rows of a whole number of 16 bytes. Slot k of the row belongs to thread k % size, which alone copies and
/// reads it: the threads need no barrier.
template <class T>
class SharedVectors {
  static constexpr int V = kVector<T>;
  using A = Compute<T>;
  using Chunk = A[V];

 public:
  static constexpr bool kKeeps = true, kInShared = true, kHoldsTerms = sizeof(T) == sizeof(A);
  /// tensor: which of the kernel's tensors the row belongs to. fill: the value of classes after the row's
  /// end.
  template <class Team>
  SK_INLINE SharedVectors(const Team& team, const Grid& grid, A /*fill*/, int tensor = 0)
      : rank_(team.rank()), size_(team.size()), classes_(static_cast<int>(grid.shape.classes)) {
    const int thread = static_cast<int>(threadIdx.x);
    slots_ = shared_memory() + grid.shared.offset + tensor * grid.shared.bytes + thread * kVectorBytes;
  }
  /// Asks for the first row.
  SK_INLINE void ask(const Span<T>& row) {
    set_next(row, false);
    walk<kReadAtOnce>([&](int c, char* slot) { ask_for(c, slot); });
  }
  /// Waits for the row that was asked for.
  SK_INLINE void arrive() {
    wait_for_copies();
    there_ = next_ != nullptr;
  }
  /// The row after this one. It is asked for by each() with in_each, otherwise by write().
  SK_INLINE void set_next(const Span<T>& next, bool in_each) {
    next_ = next.classes > 0 ? in_global_memory(next.at) : nullptr;
    in_each_ = in_each;
  }
  /// Removes a row that has arrived and is not needed.
  SK_INLINE void clear() {
    there_ = false;
    if constexpr (!kHoldsTerms) {
      walk<kReadAtOnce>([&](int, char* slot) { words(slot) = Words{}; });
    }
  }
  SK_INLINE A max() const {
    if (!there_) return -INFINITY;
    if constexpr (sizeof(T) == 2) {
      uint32_t m = narrow_pair<T>(-INFINITY, -INFINITY);
      walk<kReadAtOnce>([&](int, char* slot) {
        const Words w = words(slot);
        m = larger_pair<T>(
            m, larger_pair<T>(larger_pair<T>(w.of[0], w.of[1]), larger_pair<T>(w.of[2], w.of[3])));
      });
      return larger_half<T>(m);
    } else {
      A m = -INFINITY;
      walk<kReadAtOnce>([&](int, char* slot) {
        Chunk v;
        get(slot, v);
        for (const A x : v) m = larger(m, x);
      });
      return m;
    }
  }
  /// Calls f(v, c) for each chunk v at class c.
  template <class F>
  SK_INLINE void each(F f) {
    if (there_) {
      walk<kReadAtOnce>([&](int c, char* slot) {
        Chunk v;
        get(slot, v);
        if (in_each_) ask_for(c, slot);
        f(v, c);
      });
    } else if (in_each_) {
      walk<kReadAtOnce>([&](int c, char* slot) { ask_for(c, slot); });
    }
  }
  /// The same. The row keeps the changes that f makes to v.
  template <class F>
  SK_INLINE void change(F f) {
    static_assert(kHoldsTerms);
    if (in_each_ || !there_) return each(f);
    walk<kStoredAtOnce>([&](int c, char* slot) {
      Chunk v;
      get(slot, v);
      f(v, c);
      words(slot) = pack<T>(v);
    });
  }
  /// Calls f(v, c) and stores the changed chunks to `out`.
  template <class F>
  SK_INLINE void write(const Span<T>& out, F f) {
    walk<kStoredAtOnce>([&](int c, char* slot) {
      Chunk v;
      get(slot, v);
      f(v, c);
      store_vector(out.at + c, v);
      ask_for(c, slot);
    });
  }
  /// each() and write() with another row of the same chunks: they call f(v, w).
  template <class F>
  SK_INLINE void each_with(SharedVectors& other, F f) {
    walk<kReadAtOnce>([&](int, char* slot) {
      Chunk v, w;
      get(slot, v);
      get(other.slot_of(slot, *this), w);
      f(v, w);
    });
  }
  template <class F>
  SK_INLINE void write_with(SharedVectors& other, const Span<T>& out, F f) {
    walk<kStoredAtOnce>([&](int c, char* slot) {
      char* other_slot = other.slot_of(slot, *this);
      Chunk v, w;
      get(slot, v);
      get(other_slot, w);
      f(v, w);
      store_vector(out.at + c, v);
      ask_for(c, slot);
      other.ask_for(c, other_slot);
    });
  }
  /// Whether the thread has class c, and its value if the row still holds it.
  SK_INLINE bool has(int c) const { return c / V % size_ == rank_; }
  SK_INLINE A at(int c) const {
    const char* slot = slots_ + c / V / size_ * static_cast<int>(blockDim.x) * kVectorBytes;
    return widen(reinterpret_cast<const T*>(slot)[c % V]);
  }
  /// After write(): the thread that has class c stores v there.
  SK_INLINE void put(const Span<T>& out, int c, A v) const {
    if (has(c)) out.store(c, {v});
  }

 private:
  static SK_INLINE Words& words(char* slot) { return *reinterpret_cast<Words*>(slot); }
  static SK_INLINE void get(char* slot, Chunk& v) {
    const Words copy = words(slot);  // as in load_vector()
    unpack<T>(copy, v);
  }
  /// The slot that corresponds to another row's.
  SK_INLINE char* slot_of(char* slot, const SharedVectors& of) const { return slots_ + (slot - of.slots_); }
  SK_INLINE void ask_for(int c, char* slot) const {
    if (next_ != nullptr) begin_copy<kVectorBytes>(slot, next_ + c, kVectorBytes);
  }
  template <int kTimes, class F>
  SK_INLINE void walk(F f) const {
    const int pitch = static_cast<int>(blockDim.x) * kVectorBytes;
    char* slot = slots_;
    SK_UNROLL_BY(kTimes)
    for (int c = rank_ * V; c < classes_; c += size_ * V, slot += pitch) f(c, slot);
  }

  char* slots_;
  int rank_, size_, classes_;
  const T* next_ = nullptr;
  bool in_each_ = false, there_ = false;
};

}  // namespace
}  // namespace softkern::cuda
