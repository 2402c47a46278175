// SPDX-License-Identifier: Apache-2.0
// Rows whose classes are apart, in a block's shared memory: there, the numbers of a class lie next to each
// other. Where neighbouring rows are neighbours in memory, too, up to 16 bytes of a class are copied at a
// time, but a thread computes classes of one row. So a row's bits do not depend on how it is copied.
#pragma once

#include "shared_row.cuh"
#include "tile.cuh"

namespace softkern::cuda {
namespace {

/// A tensor, and how many bytes of neighbouring rows are copied at a time.
struct ColumnRows {
  Rows rows;
  int word;
};

template <class T>
ColumnRows column_rows(const Rows& rows, const Grid& grid) {
  return {rows, column_word(rows, grid.shape, grid.rows, sizeof(T))};
}

/// The neighbouring rows of a block, kLanes of them. A tensor that is written may have the place of one that
/// was read.
template <class T>
class ColumnTile {
  static constexpr int kSize = sizeof(T);

 public:
  static constexpr int kLanes = column_lanes(kSize);
  SK_INLINE ColumnTile(const Grid& grid, const ColumnRows& tensor, int index = 0)
      : tensor_(tensor), grid_(grid), at_(shared_memory() + grid.shared.offset + index * grid.shared.bytes) {}
  /// Asks for the rows from `first` on.
  SK_INLINE void ask(int64_t first) const {
    each_word(first, [](const char* p, char* slot, auto bytes) {
      constexpr int kBytes = decltype(bytes)::value;
      if constexpr (kBytes >= 4) {
        begin_copy<kBytes>(slot, p, kBytes);
      } else {
        *reinterpret_cast<T*>(slot) = *reinterpret_cast<const T*>(p);
      }
    });
  }
  /// Waits for them, together with the block's other threads.
  SK_INLINE void arrive() const {
    wait_for_copies();
    sync_block();
  }
  /// Stores what the block's threads have written. They may ask for further rows afterwards.
  SK_INLINE void store(int64_t first) const {
    sync_block();
    each_word(first, [](char* p, const char* slot, auto bytes) {
      using Word = Piece<T, decltype(bytes)::value / kSize>;
      *reinterpret_cast<Word*>(p) = get<Word>(slot);
    });
    sync_block();
  }
  SK_INLINE T* at() const { return reinterpret_cast<T*>(at_); }

 private:
  /// Calls f(p, slot, bytes) for each of the thread's words, in memory and in shared memory.
  template <class F>
  SK_INLINE void each_word(int64_t first, F f) const {
    const int threads = static_cast<int>(blockDim.x), word = tensor_.word;
    int thread = static_cast<int>(threadIdx.x);
    forget(thread);  // or what depends on it alone would be kept between tiles
    const int words = log2_of(kLanes * kSize) - log2_of(word);  // of a class: 2^words
    const int64_t row = first + (thread & ((1 << words) - 1)) * (word / kSize);
    if (row >= grid_.rows) return;
    const int first_class = thread >> words, step = threads >> words;
    const int steps = (static_cast<int>(grid_.shape.classes) - first_class + step - 1) / step;
    const int64_t stride = tensor_.rows.class_stride, pitch = step * stride * kSize;
    T* of_row = row_of<T>(tensor_.rows, row, grid_.shape.inner);
    char* p = in_global_memory(reinterpret_cast<char*>(of_row + first_class * stride));
    char* slot = at_ + thread * word;
    const auto go = [&](auto bytes) {
      SK_UNROLL_BY(kStoredAtOnce)
      for (int j = 0; j < steps; ++j, p += pitch, slot += threads * static_cast<int>(bytes))
        f(p, slot, bytes);
    };
    switch (word) {
      case 16:
        return go(std::integral_constant<int, 16>());
      case 8:
        return go(std::integral_constant<int, 8>());
      case 4:
        if constexpr (kSize <= 4) go(std::integral_constant<int, 4>());
        return;
      default:
        if constexpr (kSize <= 2) go(std::integral_constant<int, 2>());
    }
  }

  const ColumnRows& tensor_;
  const Grid& grid_;
  char* at_;
};

template <class T>
using ColumnTeam = Team<Compute<T>, Kinds::kColumns, ColumnTile<T>::kLanes>;

/// Calls f(first) for the first row of each of the block's tiles.
template <class T, class F>
SK_INLINE void each_tile(const Grid& grid, F f) {
  constexpr int kLanes = ColumnTile<T>::kLanes;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kLanes; first < grid.rows;
       first += static_cast<int64_t>(gridDim.x) * kLanes) {
    f(first);
  }
}

/// A lane's row of a tile, of which the thread has neighbouring classes. The steps and their names are those
/// of row.cuh; what is written stays in the tile.
template <class T>
class SharedColumn {
  static constexpr int kLanes = ColumnTile<T>::kLanes;
  using A = Compute<T>;
  using Chunk = A[1];

 public:
  static constexpr bool kKeeps = true, kInShared = true, kHoldsTerms = sizeof(T) == sizeof(A);
  SK_INLINE SharedColumn(const ColumnTeam<T>& team, const Grid& grid, const ColumnTile<T>& tile)
      : first_(team.rank() * grid.shared.steps), slots_(tile.at() + first_ * kLanes + team.lane()) {
    const int left = static_cast<int>(grid.shape.classes) - first_;
    steps_ = left < grid.shared.steps ? left : grid.shared.steps;
  }
  SK_INLINE void clear() const {
    if constexpr (!kHoldsTerms) {
      walk([&](int, T& slot) { slot = narrow<T>(0); });
    }
  }
  SK_INLINE A max() const {
    if constexpr (sizeof(T) == 2) {
      // In the low half of a pair, without a conversion of each.
      uint32_t m = narrow_pair<T>(-INFINITY, -INFINITY);
      walk([&](int, T& slot) { m = larger_pair<T>(m, slot.bits); });
      return widen(T{static_cast<uint16_t>(m)});
    } else {
      A m = -INFINITY;
      walk([&](int, T& slot) { m = larger(m, widen(slot)); });
      return m;
    }
  }
  template <class F>
  SK_INLINE void each(F f) const {
    walk([&](int c, T& slot) {
      Chunk v = {widen(slot)};
      f(v, c);
    });
  }
  template <class F>
  SK_INLINE void change(F f) const {
    walk([&](int c, T& slot) {
      Chunk v = {widen(slot)};
      f(v, c);
      set(slot, v[0]);
    });
  }
  template <class F>
  SK_INLINE void write(const Span<T>&, F f) const {
    change(f);
  }
  template <class F>
  SK_INLINE void each_with(SharedColumn& other, F f) const {
    walk([&](int, T& slot) {
      Chunk v = {widen(slot)}, w = {widen(other.slots_[&slot - slots_])};
      f(v, w);
    });
  }
  template <class F>
  SK_INLINE void write_with(SharedColumn& other, const Span<T>&, F f) const {
    walk([&](int, T& slot) {
      Chunk v = {widen(slot)}, w = {widen(other.slots_[&slot - slots_])};
      f(v, w);
      set(slot, v[0]);
    });
  }
  SK_INLINE bool has(int c) const { return c >= first_ && c < first_ + steps_; }
  SK_INLINE A at(int c) const { return widen(slots_[(c - first_) * kLanes]); }
  SK_INLINE void put(const Span<T>&, int c, A v) const {
    if (has(c)) set(slots_[(c - first_) * kLanes], v);
  }

 private:
  static SK_INLINE void set(T& slot, A v) {
    if constexpr (sizeof(T) == 2) {
      // A conversion of one number puts it into a register of 16 bits, from where a copy leads to another.
      slot = T{static_cast<uint16_t>(narrow_pair<T>(v, v))};
    } else {
      slot = narrow<T>(v);
    }
  }
  template <class F>
  SK_INLINE void walk(F f) const {
    constexpr int kAtOnce = 8;  // slots; those of shared_row.cuh have several elements each
    T* slot = slots_;
    SK_UNROLL_BY(kAtOnce)
    for (int j = 0; j < steps_; ++j, slot += kLanes) f(first_ + j, *slot);
  }

  int first_, steps_;
  T* slots_;
};

}  // namespace
}  // namespace softkern::cuda
