// SPDX-License-Identifier: Apache-2.0
// Rows in shared memory (shared_row.cuh) that may begin at any address.
#pragma once

#include "shared_row.cuh"
#include "spans.cuh"

namespace softkern::cuda {
namespace {

/// Contiguous rows that may begin at any address. A warp has neighbouring classes, and its lanes have them in
/// turn, 16-bit elements in pairs: as in spans.cuh, a row's bits do not depend on its address. A copy brings
/// 4 bytes or more, so where a row begins in the middle of a word, a pair lies in two words of the warp.
template <class T>
class SharedSpans {
  static constexpr bool kPacked = sizeof(T) == 2;
  static constexpr int kEach = kPacked ? 2 : 1, kStep = kEach * kWarp;  // classes of a lane, of a warp
  using A = Compute<T>;
  using Slot = std::conditional_t<kPacked, uint32_t, T>;
  using Chunk = A[1];

 public:
  static constexpr bool kKeeps = true, kInShared = true, kHoldsTerms = !kPacked;
  template <class Team>
  SK_INLINE SharedSpans(const Team& team, const Grid& grid, A fill, int tensor = 0)
      : classes_(static_cast<int>(grid.shape.classes)), fill_(fill) {
    lane_ = static_cast<int>(threadIdx.x) % kWarp;
    const int warp = static_cast<int>(threadIdx.x) / kWarp, steps = grid.shared.steps;
    const int begin = team.rank() / kWarp * steps * kStep, left = (classes_ - begin + kStep - 1) / kStep;
    steps_ = left < 0 ? 0 : left < steps ? left : steps;
    first_ = begin + lane_ * kEach;
    char* of_warp = shared_memory() + grid.shared.offset + tensor * grid.shared.bytes +
                    warp * (steps * kWarp * static_cast<int>(sizeof(Slot)) + kVectorBytes);
    slots_ = reinterpret_cast<Slot*>(of_warp) + lane_;
  }
  SK_INLINE void ask(const Span<T>& row) {
    set_next(row, false);
    for (int j = 0; j < steps_; ++j) ask_for(j);
    ask_for_rest();
  }
  SK_INLINE void arrive() {
    wait_for_copies();
    there_ = next_ != nullptr;
    shift_ = next_shift_;
    if (there_ && steps_ > 0) {
      if constexpr (kPacked) {
        const uint32_t fill = narrow_pair<T>(fill_, fill_);
        if (shift_ != 0 && first_ == 0) slots_[0] = (fill & 0xffff) | static_cast<uint32_t>(head_) << 16;
        end_row(steps_ - 1, fill);
        if (shift_ != 0 && lane_ == 0) end_row(steps_, fill);
      } else if (first_ + (steps_ - 1) * kStep >= classes_) {
        slots_[(steps_ - 1) * kWarp] = narrow<T>(fill_);
      }
    }
    sync_warp();
  }
  SK_INLINE void set_next(const Span<T>& next, bool in_each) {
    next_ = next.classes > 0 ? in_global_memory(next.at) : nullptr;
    in_each_ = in_each;
    if constexpr (kPacked) next_shift_ = reinterpret_cast<uintptr_t>(next_) % sizeof(uint32_t) != 0 ? 16 : 0;
  }
  SK_INLINE void clear() {
    there_ = false;
    if constexpr (kPacked) {
      for (int j = 0; j < steps_; ++j) slots_[j * kWarp] = 0;
      if (lane_ == 0) slots_[steps_ * kWarp] = 0;
      sync_warp();
    }
  }
  SK_INLINE A max() const {
    if (!there_) return -INFINITY;
    if constexpr (kPacked) {
      uint32_t m = narrow_pair<T>(-INFINITY, -INFINITY);
      SK_UNROLL_BY(kReadAtOnce)
      for (int j = 0; j < steps_; ++j) m = larger_pair<T>(m, pair(j));
      return larger_half<T>(m);
    } else {
      A m = -INFINITY;
      SK_UNROLL_BY(kReadAtOnce)
      for (int j = 0; j < steps_; ++j) m = larger(m, widen(slots_[j * kWarp]));
      return m;
    }
  }
  template <class F>
  SK_INLINE void each(F f) {
    if (in_each_ && next_ != nullptr) {
      for (int j = 0; j < steps_; ++j) {
        Chunk v[kEach];
        get(j, v);
        ask_after_use(j);
        if (there_) call(f, j, v);
      }
      ask_for_rest();
    } else if (there_) {
      SK_UNROLL_BY(kReadAtOnce)
      for (int j = 0; j < steps_; ++j) {
        Chunk v[kEach];
        get(j, v);
        call(f, j, v);
      }
    }
  }
  template <class F>
  SK_INLINE void change(F f) {
    static_assert(kHoldsTerms);
    if (in_each_ || !there_) return each(f);
    SK_UNROLL_BY(kReadAtOnce)
    for (int j = 0; j < steps_; ++j) {
      Chunk v[kEach];
      get(j, v);
      call(f, j, v);
      slots_[j * kWarp] = narrow<T>(v[0][0]);
    }
  }
  template <class F>
  SK_INLINE void write(const Span<T>& out, F f) {
    store_steps(
        out,
        [&](int j, Chunk(&v)[kEach]) {
          get(j, v);
          call(f, j, v);
        },
        [&](int j) { ask_after_use(j); });
    ask_for_rest();
  }
  template <class F>
  SK_INLINE void each_with(SharedSpans& other, F f) {
    SK_UNROLL_BY(kReadAtOnce)
    for (int j = 0; j < steps_; ++j) {
      Chunk v[kEach];
      with(other, j, v, f);
    }
  }
  template <class F>
  SK_INLINE void write_with(SharedSpans& other, const Span<T>& out, F f) {
    store_steps(
        out, [&](int j, Chunk(&v)[kEach]) { with(other, j, v, f); },
        [&](int j) {
          ask_after_use(j);
          other.ask_for(j);
        });
    ask_for_rest();
    other.ask_for_rest();
  }
  SK_INLINE bool has(int c) const {
    const int from = c - first_;
    return from >= 0 && from < steps_ * kStep && from % kStep < kEach;
  }
  SK_INLINE A at(int c) const {
    const int from = c - first_;
    Chunk v[kEach];
    get(from / kStep, v);
    return from % kStep == 0 ? v[0][0] : v[kEach - 1][0];
  }
  SK_INLINE void put(const Span<T>& out, int c, A v) const {
    if (kPacked) sync_warp();  // another lane may have stored to this word
    if (has(c)) out.store(c, {v});
  }

 private:
  /// Of the word in slot j, or for lane 0 after the last step: the halves after the row's end become `fill`.
  SK_INLINE void end_row(int j, uint32_t fill) const {
    const int c = first_ + j * kStep - shift_ / 16;
    if (c + 1 < classes_) return;
    Slot& word = slots_[j * kWarp];
    word = ((c < classes_ ? word : fill) & 0xffff) | (fill & 0xffff0000);
  }
  SK_INLINE uint32_t pair(int j) const {
    const Slot* own = slots_ + j * kWarp;
    return shift_pair(own[0], own[shift_ / 16], shift_);
  }
  SK_INLINE void get(int j, Chunk (&v)[kEach]) const {
    if constexpr (kPacked) {
      unpack_pair<T>(pair(j), v[0][0], v[1][0]);
    } else {
      v[0][0] = widen(slots_[j * kWarp]);
    }
  }
  template <class F>
  SK_INLINE void call(F& f, int j, Chunk (&v)[kEach]) const {
    SK_UNROLL
    for (int i = 0; i < kEach; ++i) f(v[i], first_ + j * kStep + i);
  }
  template <class F>
  SK_INLINE void with(const SharedSpans& other, int j, Chunk (&v)[kEach], F f) const {
    Chunk w[kEach];
    get(j, v);
    other.get(j, w);
    SK_UNROLL
    for (int i = 0; i < kEach; ++i) f(v[i], w[i]);
  }
  template <class Make, class Ask>
  SK_INLINE void store_steps(const Span<T>& out, Make make, Ask ask) const {
    if constexpr (kPacked) {
      Pairs<T> to(out.at, out.classes, first_);
      SK_UNROLL_BY(1)
      for (int j = 0; j < steps_; ++j) {
        Chunk v[kEach];
        make(j, v);
        const uint32_t pair = narrow_pair<T>(v[0][0], v[1][0]);
        if (is_inner(j)) {
          to.store_inner(j, pair);
        } else {
          to.store(j, j + 1 == steps_, pair);
        }
        ask(j);
      }
    } else {
      T* own = in_global_memory(out.at) + first_;
      const int left = static_cast<int>(out.classes) - first_;
      SK_UNROLL_BY(kReadAtOnce)
      for (int j = 0; j < steps_; ++j) {
        Chunk v[kEach];
        make(j, v);
        if (j * kWarp < left) own[j * kWarp] = narrow<T>(v[0][0]);
        ask(j);
      }
    }
  }
  /// Asks for slot j of the next row, whose pair all lanes of the warp have read.
  SK_INLINE void ask_after_use(int j) const {
    if (kPacked) sync_warp();
    ask_for(j);
  }
  SK_INLINE void ask_for(int j) const {
    if (next_ == nullptr) return;
    constexpr int kBytes = static_cast<int>(sizeof(Slot));
    const int c = first_ + j * kStep - (kPacked ? next_shift_ / 16 : 0);
    char* slot = reinterpret_cast<char*>(slots_ + j * kWarp);
    if (is_inner(j)) {
      begin_copy<kBytes>(slot, next_ + c, kBytes);
    } else if (c >= 0 && c < classes_) {
      const int valid = (classes_ - c) * static_cast<int>(sizeof(T));
      begin_copy<kBytes>(slot, next_ + c, valid < kBytes ? valid : kBytes);
    }
  }
  /// Whether all of the warp's classes of step j are in the row, and none of its neighbours' is in their
  /// words.
  SK_INLINE bool is_inner(int j) const { return j > 0 && j + 1 < steps_; }
  /// The halves of words that lanes do not have: the row's first class, and the word after the warp's last.
  SK_INLINE void ask_for_rest() {
    if constexpr (kPacked) {
      if (next_shift_ == 0 || steps_ == 0) return;
      if (lane_ == 0) ask_for(steps_);
      if (first_ == 0) head_ = next_[0].bits;
    }
  }

  Slot* slots_;
  int lane_, first_, steps_, classes_;
  A fill_;
  const T* next_ = nullptr;
  bool in_each_ = false, there_ = false;
  int shift_ = 0, next_shift_ = 0;  // bits of a word before the row's first pair
  uint16_t head_ = 0;
};

}  // namespace
}  // namespace softkern::cuda
