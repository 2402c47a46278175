// SPDX-License-Identifier: Apache-2.0
// The only loop over a row and its tail. It defines the order of every reduction, which AsRows in
// lanes/order.h follows too:
//
// - Vector v of a row is added to accumulator v % 4.
// - A partial vector is added to accumulator 3, which is free in the last round (up to three whole vectors).
// - Blocks of kBlock elements are added up one after the other.
// - At the end, the four accumulators are added up as (0 + 1) + (2 + 3).
#pragma once

#include "../policy.h"

namespace softkern::cpu {
namespace {

template <int K>
struct Slot {
  static constexpr int index = K;
};

/// Access to a whole vector (Whole) or to its first n lanes (Tail). `fill` is the value of lanes past the end
/// of the row.
template <class A>
struct Whole {
  using S = Simd<A>;
  static constexpr bool kWhole = true;
  template <class T>
  SK_INLINE typename S::Reg load(const T* p, A) const {
    return S::load(p);
  }
  template <class T>
  SK_INLINE void store(T* p, const typename S::Reg& v) const {
    S::store(p, v);
  }
  SK_INLINE const typename S::Reg& keep(const typename S::Reg& v) const { return v; }
  SK_INLINE int size() const { return S::kLanes; }
};
template <class A>
struct Tail {
  using S = Simd<A>;
  static constexpr bool kWhole = false;
  int n;
  template <class T>
  SK_INLINE typename S::Reg load(const T* p, A fill) const {
    return S::load(p, n, fill);
  }
  template <class T>
  SK_INLINE void store(T* p, const typename S::Reg& v) const {
    S::store(p, v, n);
  }
  SK_INLINE int size() const { return n; }
  /// v with zeros in the lanes past the end.
  SK_INLINE typename S::Reg keep(const typename S::Reg& v) const {
    A lanes[S::kLanes];
    S::store(lanes, v);
    return S::load(lanes, n, A(0));
  }
};

/// Calls body(slot, access, i) for the vectors at i = 0, kLanes, ... of a row of n elements. Four whole
/// vectors from i on are one call four(i) instead.
template <class A, class Four, class Body>
SK_INLINE void for_each_four(int64_t n, Four four, Body body) {
  constexpr int64_t L = Simd<A>::kLanes;
  constexpr Whole<A> whole{};
  int64_t i = 0;
  for (; i + 4 * L <= n; i += 4 * L) four(i);
  if (i + L <= n) {
    body(Slot<0>{}, whole, i);
    i += L;
    if (i + L <= n) {
      body(Slot<1>{}, whole, i);
      i += L;
      if (i + L <= n) {
        body(Slot<2>{}, whole, i);
        i += L;
      }
    }
  }
  if (i < n) body(Slot<3>{}, Tail<A>{static_cast<int>(n - i)}, i);
}

template <class A, class Body>
SK_INLINE void for_each_vector(int64_t n, Body body) {
  constexpr int64_t L = Simd<A>::kLanes;
  constexpr Whole<A> whole{};
  for_each_four<A>(
      n,
      [&](int64_t i) __attribute__((always_inline)) {
        body(Slot<0>{}, whole, i);
        body(Slot<1>{}, whole, i + L);
        body(Slot<2>{}, whole, i + 2 * L);
        body(Slot<3>{}, whole, i + 3 * L);
      },
      body);
}

/// Stores body(access, i) at y + i, for the vectors of a row of n elements.
template <class A, class T, class Body>
SK_INLINE void store_vectors(T* y, int64_t n, Body body) {
  for_each_vector<A>(
      n, [&](auto, auto at, int64_t i) __attribute__((always_inline)) { at.store(y + i, body(at, i)); });
}

/// The number of elements, at most n, in front of the first vector whose address is a multiple of its size.
template <class A, class T>
SK_INLINE int64_t unaligned_head(const T* y, int64_t n) {
  const auto before = static_cast<int64_t>(-reinterpret_cast<uintptr_t>(y) / sizeof(T) % Simd<A>::kLanes);
  return before < n ? before : n;
}

/// Like store_vectors, but past the caches: the vectors are aligned to their size, and each is written whole.
template <class A, class T, class Body>
SK_INLINE void stream_vectors(T* y, int64_t n, Body body) {
  using S = Simd<A>;
  constexpr int64_t L = S::kLanes;
  int64_t i = unaligned_head<A>(y, n);
  if (i > 0) {
    const Tail<A> head{static_cast<int>(i)};
    head.store(y, body(head, 0));
  }
  for (; i + L <= n; i += L) S::stream(y + i, body(Whole<A>{}, i));
  if (i < n) {
    const Tail<A> tail{static_cast<int>(n - i)};
    tail.store(y + i, body(tail, i));
  }
}

template <class A, class T, class Body>
SK_INLINE void write_vectors(T* y, int64_t n, bool stream, Body body) {
  if (stream) {
    stream_vectors<A>(y, n, body);
  } else {
    store_vectors<A>(y, n, body);
  }
}

/// Like write_vectors, but four whole vectors at a time as long as there are four: four(i, v) computes those
/// from i on.
template <class A, class T, class Four, class Body>
SK_INLINE void write_fours(T* y, int64_t n, bool stream, Four four, Body body) {
  using S = Simd<A>;
  constexpr int64_t L = S::kLanes;
  if (!stream) {
    for_each_four<A>(
        n,
        [&](int64_t i) __attribute__((always_inline)) {
          typename S::Reg v[4];
          four(i, v);
          for (int k = 0; k < 4; ++k) S::store(y + i + k * L, v[k]);
        },
        [&](auto, auto at, int64_t i) __attribute__((always_inline)) { at.store(y + i, body(at, i)); });
    return;
  }
  const int64_t before = unaligned_head<A>(y, n);
  int64_t i = before + (n - before) / (4 * L) * (4 * L);
  stream_vectors<A>(y, before, body);
  for (int64_t at = before; at < i; at += 4 * L) {
    typename S::Reg v[4];
    four(at, v);
    for (int k = 0; k < 4; ++k) S::stream(y + at + k * L, v[k]);
  }
  stream_vectors<A>(y + i, n - i,
                    [&](auto at, int64_t k) __attribute__((always_inline)) { return body(at, i + k); });
}

/// The smallest lane. Instruction sets provide reduce_max only.
template <class A>
SK_INLINE A reduce_min(const typename Simd<A>::Reg& v) {
  using S = Simd<A>;
  return -S::reduce_max(S::sub(S::broadcast(0), v));
}

template <class A>
class Accumulators {
  using S = Simd<A>;
  using Reg = typename S::Reg;

 public:
  explicit SK_INLINE Accumulators(A start = 0) {
    for (Reg& v : v_) v = S::broadcast(start);
  }
  // GCC compiles implicitly defined members without the target instruction set: no implicit copies.
  SK_INLINE void set(const Accumulators& other) {
    for (int k = 0; k < 4; ++k) v_[k] = other.v_[k];
  }
  SK_INLINE void add(const Accumulators& block) {
    for (int k = 0; k < 4; ++k) v_[k] = S::add(v_[k], block.v_[k]);
  }
  template <int K>
  SK_INLINE void add(Slot<K>, const Reg& v) {
    v_[K] = S::add(v_[K], v);
  }
  SK_INLINE void add(const Reg (&four)[4]) {
    for (int k = 0; k < 4; ++k) v_[k] = S::add(v_[k], four[k]);
  }
  template <int K>
  SK_INLINE void add_unless_equal(Slot<K>, const Reg& v, const Reg& a, const Reg& b) {
    v_[K] = S::add_unless_equal(v_[K], v, a, b);
  }
  template <int K>
  SK_INLINE void add_product(Slot<K>, const Reg& a, const Reg& b) {
    v_[K] = S::fma(a, b, v_[K]);
  }
  // The accumulator is the second operand, which max and min return if one of them is NaN: NaNs are left out
  // here. exp(NaN - m) finds them again.
  template <int K>
  SK_INLINE void take_max(Slot<K>, const Reg& v) {
    v_[K] = S::max(v, v_[K]);
  }
  template <int K>
  SK_INLINE void take_min(Slot<K>, const Reg& v) {
    v_[K] = S::min(v, v_[K]);
  }
  // The four accumulators combined into one, lane by lane.
  SK_INLINE Reg lane_sum() const { return S::add(S::add(v_[0], v_[1]), S::add(v_[2], v_[3])); }
  SK_INLINE Reg lane_max() const { return S::max(S::max(v_[0], v_[1]), S::max(v_[2], v_[3])); }
  SK_INLINE Reg lane_min() const { return S::min(S::min(v_[0], v_[1]), S::min(v_[2], v_[3])); }
  SK_INLINE A sum() const { return S::reduce_add(lane_sum()); }
  SK_INLINE A max() const { return S::reduce_max(lane_max()); }
  SK_INLINE A min() const { return reduce_min<A>(lane_min()); }

 private:
  Reg v_[4];
};

/// Calls body(start, n) for each block of a row.
template <class A, class Body>
SK_INLINE void for_each_block(int64_t n, Body body) {
  constexpr int64_t kBlock = kBlockBytes / sizeof(A);
  for (int64_t start = 0; start < n; start += kBlock) body(start, n - start < kBlock ? n - start : kBlock);
}

/// Computes K sums over a row in blocks. body(part, slot, access, i) adds the share of a vector to part[0],
/// ..., part[K - 1]. take(part) receives the sums of each block, in order.
template <class A, int K, class Body, class Take>
SK_INLINE void sum_blocks(int64_t n, Body body, Take take) {
  for_each_block<A>(n, [&](int64_t start, int64_t size) __attribute__((always_inline)) {
    Accumulators<A> part[K];
    for_each_vector<A>(size, [&](auto slot, auto at, int64_t i)
                                 __attribute__((always_inline)) { body(part, slot, at, start + i); });
    take(part);
  });
}

template <class A, int K>
struct Sums {
  A of[K];
};

/// The sums of blocks, added up one block after the other.
template <class A, int K>
struct BlockSums {
  Accumulators<A> total[K];
  SK_INLINE BlockSums() {}
  SK_INLINE void add(const Accumulators<A>* block) {
    for (int k = 0; k < K; ++k) total[k].add(block[k]);
  }
  SK_INLINE Sums<A, K> sums() const {
    Sums<A, K> result;
    for (int k = 0; k < K; ++k) result.of[k] = total[k].sum();
    return result;
  }
};

template <class A, int K, class Body>
SK_INLINE Sums<A, K> sum_row(int64_t n, Body body) {
  BlockSums<A, K> all;
  sum_blocks<A, K>(n, body,
                   [&](const Accumulators<A>* part) __attribute__((always_inline)) { all.add(part); });
  return all.sums();
}

}  // namespace
}  // namespace softkern::cpu
