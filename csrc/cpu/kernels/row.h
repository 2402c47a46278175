// SPDX-License-Identifier: Apache-2.0
// The loop over a row and its tail: the only one. And with it the canonical order of every reduction:
// vector v of a row goes to accumulator v % 4, the vector that is not whole to accumulator 3 (free in the
// last round, which has at most three whole vectors), and the four meet as (0 + 1) + (2 + 3).
#pragma once

#include "../scalar.h"

namespace softkern::cpu {
namespace {

template <int K>
struct Slot {
  static constexpr int index = K;
};

/// Access to a whole vector / to the first n lanes. fill goes to lanes behind the row's end.
template <class A>
struct Whole {
  using S = Simd<A>;
  template <class T>
  SK_INLINE typename S::Reg load(const T* p, A) const {
    return S::load(p);
  }
  template <class T>
  SK_INLINE void store(T* p, const typename S::Reg& v) const {
    S::store(p, v);
  }
};
template <class A>
struct Tail {
  using S = Simd<A>;
  int n;
  template <class T>
  SK_INLINE typename S::Reg load(const T* p, A fill) const {
    return S::load(p, n, fill);
  }
  template <class T>
  SK_INLINE void store(T* p, const typename S::Reg& v) const {
    S::store(p, v, n);
  }
};

/// body(slot, access, i) for the vectors at i = 0, kLanes, ... of a row of n elements.
template <class A, class Body>
SK_INLINE void for_each_vector(int64_t n, Body body) {
  constexpr int64_t L = Simd<A>::kLanes;
  constexpr Whole<A> whole{};
  int64_t i = 0;
  for (; i + 4 * L <= n; i += 4 * L) {
    body(Slot<0>{}, whole, i);
    body(Slot<1>{}, whole, i + L);
    body(Slot<2>{}, whole, i + 2 * L);
    body(Slot<3>{}, whole, i + 3 * L);
  }
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

template <class A>
class Accumulators {
  using S = Simd<A>;
  using Reg = typename S::Reg;

 public:
  explicit SK_INLINE Accumulators(A start) {
    for (Reg& v : v_) v = S::broadcast(start);
  }
  template <int K>
  SK_INLINE void add(Slot<K>, const Reg& v) {
    v_[K] = S::add(v_[K], v);
  }
  template <int K>
  SK_INLINE void add_product(Slot<K>, const Reg& a, const Reg& b) {
    v_[K] = S::fma(a, b, v_[K]);
  }
  // The accumulator is the second operand, which max returns for a NaN: NaNs are left out here and found
  // again by exp(NaN - m).
  template <int K>
  SK_INLINE void take_max(Slot<K>, const Reg& v) {
    v_[K] = S::max(v, v_[K]);
  }
  SK_INLINE A sum() const { return S::reduce_add(S::add(S::add(v_[0], v_[1]), S::add(v_[2], v_[3]))); }
  SK_INLINE A max() const { return S::reduce_max(S::max(S::max(v_[0], v_[1]), S::max(v_[2], v_[3]))); }

 private:
  Reg v_[4];
};

}  // namespace
}  // namespace softkern::cpu
