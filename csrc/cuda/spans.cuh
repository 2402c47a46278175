// SPDX-License-Identifier: Apache-2.0
// Contiguous rows that may begin at any address. A warp has a span of 32 E classes, in which neighbouring
// lanes read neighbouring classes, at distances that are known at compile time. Which thread has which class
// does not depend on the row's address, so neither do its bits.
#pragma once

#include "row.cuh"

namespace softkern::cuda {
namespace {

/// The pairs of 16-bit elements of a span. A pair may lie in two words of memory. Lane l has the pairs number
/// l + 32 j. The first or last word may belong to the row by half only; it is accessed by elements. So is a
/// word that two warps share, when it is written. There are no branches, because the compiler would guard
/// each shuffle in a branch.
template <class T>
class Pairs {
  static_assert(sizeof(T) == 2);
  static constexpr int kStep = 2 * kWarp;  // classes from a lane's pair to its next
  using Word = std::conditional_t<std::is_const_v<T>, const uint32_t, uint32_t>;

 public:
  /// first: the class of the lane's first pair.
  SK_INLINE Pairs(T* row, int64_t classes, int first) {
    odd_ = reinterpret_cast<uintptr_t>(row) % sizeof(uint32_t) != 0;
    lane_ = static_cast<int>(threadIdx.x) % kWarp;
    c_ = odd_ ? first - 1 : first;
    left_ = static_cast<int>(classes) - c_;
    // If the row ends where the warp's span begins, the warp has nothing: the last class belongs to the
    // previous warp.
    if (odd_ && lane_ == 0 && left_ == 1) left_ = 0;
    own_ = in_global_memory(row) + c_;
  }

  template <int N>
  SK_INLINE void load(uint32_t (&pairs)[N], uint32_t fill) const {
    SK_UNROLL
    for (int j = 0; j < N; ++j) {
      pairs[j] = fill;
      if (left_ >= j * kStep + 2 && (j > 0 || c_ >= 0)) pairs[j] = *word(j);
    }
    if (c_ < 0 && left_ >= 2) pairs[0] = (fill & 0xffff) | static_cast<uint32_t>(own_[1].bits) << 16;
    const int tail = tail_of<N>();
    if (tail >= 0) {
      const uint32_t half = (fill & 0xffff0000) | own_[tail * kStep].bits;
      SK_UNROLL
      for (int j = 0; j < N; ++j) pairs[j] = j == tail ? half : pairs[j];
    }
    // The last lane's last pair ends in a word of the next warp.
    uint32_t last = fill;
    constexpr int kNext = (N - 1) * kStep + 2;
    if (odd_ && lane_ == kWarp - 1 && left_ > kNext) last = own_[kNext].bits;
    SK_UNROLL
    for (int j = 0; j < N; ++j) {
      uint32_t next = shuffle(j + 1 < N && lane_ == 0 ? pairs[j + 1] : pairs[j], (lane_ + 1) % kWarp);
      if (j + 1 == N && lane_ == kWarp - 1) next = last;
      pairs[j] = odd_ ? pairs[j] >> 16 | next << 16 : pairs[j];
    }
  }

  /// Stores pair number j, the last one or not. The caller stores the pairs in ascending order.
  SK_INLINE void store(int j, bool last, uint32_t pair) {
    const uint32_t value = aligned(pair);
    const bool shared = j == 0 && odd_ && lane_ == 0;
    if (left_ >= j * kStep + 2 && !shared) *word(j) = value;
    if (shared && left_ >= 2) own_[1] = {static_cast<uint16_t>(pair)};
    if (left_ == j * kStep + 1) own_[j * kStep] = {static_cast<uint16_t>(value)};
    const int next = j * kStep + 2;
    if (last && odd_ && lane_ == kWarp - 1 && left_ > next) own_[next] = {static_cast<uint16_t>(pair >> 16)};
  }
  /// The same for a pair that is neither the first nor the last one, with the whole word in the row.
  SK_INLINE void store_inner(int j, uint32_t pair) { *word(j) = aligned(pair); }

 private:
  /// The word that ends in the middle of the pair, if the row begins in the middle of a word.
  SK_INLINE uint32_t aligned(uint32_t pair) {
    const uint32_t previous = shuffle(lane_ == kWarp - 1 ? before_ : pair, (lane_ + kWarp - 1) % kWarp);
    before_ = pair;
    return shift_pair(previous, pair, odd_ ? 16 : 32);
  }
  SK_INLINE Word* word(int j) const { return in_global_memory(reinterpret_cast<Word*>(own_ + j * kStep)); }
  /// Which of the lane's N words is the row's last one, if only its first half is in the row; otherwise -1.
  template <int N>
  SK_INLINE int tail_of() const {
    const int j = (left_ - 1) / kStep;
    return left_ >= 1 && left_ % kStep == 1 && j < N ? j : -1;
  }

  bool odd_;
  int lane_, c_, left_;  // c_: class at the start of the lane's first word; left_: classes from there
  T* own_;
  uint32_t before_ = 0;
};

/// Like KeptRow, but 16-bit elements are kept in pairs.
template <class T, int E>
class SpannedRow {
  static constexpr bool kPacked = sizeof(T) == 2;
  static constexpr int kEach = kPacked ? 2 : 1, kSteps = E / kEach;
  static_assert(E % kEach == 0);
  using A = Compute<T>;
  using Chunk = A[1];

 public:
  static constexpr bool kKeeps = true, kHoldsTerms = !kPacked, kInShared = false;
  template <class Team>
  explicit SK_INLINE SpannedRow(const Team& team)
      : first_(team.rank() / kWarp * kWarp * E + team.rank() % kWarp * kEach) {}
  SK_INLINE void load(const Span<T>& row, A fill) {
    if constexpr (kPacked) {
      Pairs<T>(row.at, row.classes, first_).load(held_, narrow_pair<T>(fill, fill));
    } else {
      const T* own = in_global_memory(row.at) + first_;
      const int left = static_cast<int>(row.classes) - first_;
      SK_UNROLL
      for (int j = 0; j < kSteps; ++j) {
        held_[j] = fill;
        if (j * kWarp < left) held_[j] = widen(own[j * kWarp]);
      }
    }
  }
  SK_INLINE void clear() {
    static_assert(kPacked);
    for (uint32_t& pair : held_) pair = 0;
  }
  SK_INLINE A max() const {
    auto m = held_[0];
    SK_UNROLL
    for (int j = 1; j < kSteps; ++j) {
      if constexpr (kPacked) {
        m = larger_pair<T>(m, held_[j]);
      } else {
        m = larger(m, held_[j]);
      }
    }
    if constexpr (kPacked) {
      return larger_half<T>(m);
    } else {
      return m;
    }
  }
  template <class F>
  SK_INLINE void each(F f) {
    go([&](int j, Chunk(&v)[kEach]) {
      SK_UNROLL
      for (int i = 0; i < kEach; ++i) f(v[i], at(j) + i);
    });
  }
  template <class F>
  SK_INLINE void write(const Span<T>& out, F f) {
    write_steps(out, [&](int j, Chunk(&v)[kEach]) {
      SK_UNROLL
      for (int i = 0; i < kEach; ++i) f(v[i], at(j) + i);
    });
  }
  SK_INLINE void put(const Span<T>& out, int c, A v) const {
    if (kPacked) sync_warp();  // another lane may have stored to this word
    const int from = c - first_;
    if (from >= 0 && from < kWarp * E && from % (kEach * kWarp) < kEach) out.store(c, {v});
  }
  template <class F>
  SK_INLINE void each_with(SpannedRow& other, F f) {
    go([&](int j, Chunk(&v)[kEach]) { with(other, j, v, f); });
  }
  template <class F>
  SK_INLINE void write_with(SpannedRow& other, const Span<T>& out, F f) {
    write_steps(out, [&](int j, Chunk(&v)[kEach]) { with(other, j, v, f); });
  }

 private:
  /// Calls f(j, v) for the elements that are kept together. The row keeps the changes that f makes to v,
  /// unless it is packed.
  template <class F>
  SK_INLINE void go(F f) {
    SK_UNROLL
    for (int j = 0; j < kSteps; ++j) {
      Chunk v[kEach];
      get(j, v);
      f(j, v);
      if constexpr (!kPacked) held_[j] = v[0][0];
    }
  }
  template <class F>
  SK_INLINE void write_steps(const Span<T>& out, F f) {
    if constexpr (kPacked) {
      Pairs<T> to(out.at, out.classes, first_);
      go([&](int j, Chunk(&v)[kEach]) {
        f(j, v);
        to.store(j, j + 1 == kSteps, narrow_pair<T>(v[0][0], v[1][0]));
      });
    } else {
      T* own = in_global_memory(out.at) + first_;
      const int left = static_cast<int>(out.classes) - first_;
      go([&](int j, Chunk(&v)[kEach]) {
        f(j, v);
        if (j * kWarp < left) own[j * kWarp] = narrow<T>(v[0][0]);
      });
    }
  }
  template <class F>
  SK_INLINE void with(SpannedRow& other, int j, Chunk (&v)[kEach], F f) {
    Chunk w[kEach];
    other.get(j, w);
    SK_UNROLL
    for (int i = 0; i < kEach; ++i) f(v[i], w[i]);
  }
  SK_INLINE void get(int j, Chunk (&v)[kEach]) {
    if constexpr (kPacked) {
      forget(held_[j]);  // as in KeptRow
      unpack_pair<T>(held_[j], v[0][0], v[1][0]);
    } else {
      v[0][0] = held_[j];
    }
  }
  SK_INLINE int at(int j) const { return first_ + j * kEach * kWarp; }
  std::conditional_t<kPacked, uint32_t, A> held_[kSteps];
  int first_;
};

}  // namespace
}  // namespace softkern::cuda
