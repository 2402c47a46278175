// SPDX-License-Identifier: Apache-2.0
// The readable specification of the contract, in the vector extension of GCC and Clang: the lanes are an
// array of 16-byte vectors, the width that every 64-bit CPU has.
#pragma once

#include "../../common/log_constants.h"
#include "contract.h"

// Without a fused multiply-add, exp is long code: inlined at every unrolled step, it would take half a minute
// to compile. A call for 16 numbers costs little beside the work.
#define SOFTKERN_EXP SK_CALL

namespace softkern::cpu {
namespace {

template <class A>
struct PartOf;
template <>
struct PartOf<float> {
  typedef float Vec __attribute__((vector_size(16)));
  typedef int32_t Int __attribute__((vector_size(16)));
  typedef uint32_t Bits __attribute__((vector_size(16)));
  static constexpr int kMantissaBits = 23, kExponentBias = 127;
  static constexpr int32_t kHalfRoot = static_cast<int32_t>(LogConstants<float>::kHalfRoot);
};
template <>
struct PartOf<double> {
  typedef double Vec __attribute__((vector_size(16)));
  typedef int64_t Int __attribute__((vector_size(16)));
  typedef uint64_t Bits __attribute__((vector_size(16)));
  static constexpr int kMantissaBits = 52, kExponentBias = 1023;
  static constexpr int64_t kHalfRoot = static_cast<int64_t>(LogConstants<double>::kHalfRoot);
};
using Float4 = PartOf<float>::Vec;
using Double2 = PartOf<double>::Vec;
using Bits2 = PartOf<double>::Bits;

#if defined(__FP_FAST_FMAF)
SK_INLINE Float4 fused(Float4 a, Float4 b, Float4 c) {
  for (int l = 0; l < 4; ++l) c[l] = __builtin_fmaf(a[l], b[l], c[l]);
  return c;
}
#else
// Without the instruction, fmaf is a library call for each element. In double, the product is exact and the
// sum is rounded to odd: after that, only the rounding to float counts (Boldo & Melquiond, 2008).
SK_INLINE Double2 fused_to_odd(Double2 a, Double2 b, Double2 c) {
  const Double2 product = a * b;
  const Double2 sum = product + c;
  const Double2 part = sum - product;
  const Double2 lost = (product - (sum - part)) + (c - part);
  const Bits2 bits = (Bits2)sum;
  // The comparisons are false for the NaN that an infinite sum leaves in `lost`.
  const Bits2 even = (Bits2)((lost > 0) | (lost < 0)) & ~bits & 1;
  const Bits2 down = even & (((Bits2)lost ^ bits) >> 63);
  return (Double2)(bits + even - down - down);
}
[[maybe_unused]] SK_CALL Float4 fused(Float4 a, Float4 b, Float4 c) {
  const Double2 low = fused_to_odd(Double2{a[0], a[1]}, Double2{b[0], b[1]}, Double2{c[0], c[1]});
  const Double2 high = fused_to_odd(Double2{a[2], a[3]}, Double2{b[2], b[3]}, Double2{c[2], c[3]});
  return Float4{static_cast<float>(low[0]), static_cast<float>(low[1]), static_cast<float>(high[0]),
                static_cast<float>(high[1])};
}
#endif
SK_INLINE Double2 fused(Double2 a, Double2 b, Double2 c) {
  for (int l = 0; l < 2; ++l) c[l] = __builtin_fma(a[l], b[l], c[l]);
  return c;
}

template <class A>
struct PortableSimd {
  using Number = A;
  static constexpr int kLanes = 64 / sizeof(A), kPiece = 16 / sizeof(A), kWidePiece = kPiece;
  using P = PartOf<A>;
  static constexpr int kBias = P::kExponentBias, kInStep = 1;
  using Vec = typename P::Vec;
  using Int = typename P::Int;
  using Bits = typename P::Bits;
  struct Reg {
    Vec part[4];
  };

  static SK_INLINE Reg broadcast(A a) {
    A lanes[kLanes];
    for (A& lane : lanes) lane = a;
    return load(lanes);
  }
  template <class T>
  static SK_INLINE Reg load(const T* p) {
    return load(p, kLanes, A(0));
  }
  static SK_INLINE Reg load(const A* p) {
    Reg v;
    __builtin_memcpy(&v, p, sizeof(v));
    return v;
  }
  template <class T>
  static SK_CALL Reg load(const T* p, int n, A fill) {
    A lanes[kLanes];
    for (int l = 0; l < kLanes; ++l) lanes[l] = l < n ? widen(p[l]) : fill;
    return load(lanes);
  }
  template <class T>
  static SK_INLINE void store(T* p, const Reg& v) {
    store(p, v, kLanes);
  }
  static SK_INLINE void store(A* p, const Reg& v) { __builtin_memcpy(p, &v, sizeof(v)); }
  template <class T>
  static SK_INLINE void stream(T* p, const Reg& v) {
    store(p, v);
  }
  static SK_INLINE void fence() {}
  template <class T>
  static SK_CALL void store(T* p, const Reg& v, int n) {
    A lanes[kLanes];
    store(lanes, v);
    for (int l = 0; l < n; ++l) p[l] = Narrow<T>::from(lanes[l]);
  }
  static SK_INLINE Reg add(const Reg& a, const Reg& b) {
    return map([](Vec x, Vec y) { return x + y; }, a, b);
  }
  static SK_INLINE Reg sub(const Reg& a, const Reg& b) {
    return map([](Vec x, Vec y) { return x - y; }, a, b);
  }
  static SK_INLINE Reg mul(const Reg& a, const Reg& b) {
    return map([](Vec x, Vec y) { return x * y; }, a, b);
  }
  static SK_INLINE Reg div(const Reg& a, const Reg& b) {
    return map([](Vec x, Vec y) { return x / y; }, a, b);
  }
  static SK_INLINE Reg fma(const Reg& a, const Reg& b, const Reg& c) {
    return map([](Vec x, Vec y, Vec z) { return fused(x, y, z); }, a, b, c);
  }
  static SK_INLINE Reg max(const Reg& a, const Reg& b) {
    return map([](Vec x, Vec y) { return x > y ? x : y; }, a, b);
  }
  static SK_INLINE Reg min(const Reg& a, const Reg& b) {
    return map([](Vec x, Vec y) { return x < y ? x : y; }, a, b);
  }
  static SK_INLINE Reg add_if_equal(const Reg& s, const Reg& v, const Reg& a, const Reg& b) {
    return map([](Vec t, Vec w, Vec x, Vec y) { return t + (x == y ? w : Vec{}); }, s, v, a, b);
  }
  static SK_INLINE Reg add_unless_equal(const Reg& s, const Reg& v, const Reg& a, const Reg& b) {
    return map([](Vec t, Vec w, Vec x, Vec y) { return t + (x == y ? Vec{} : w); }, s, v, a, b);
  }
  static SK_INLINE Reg if_equal(const Reg& a, const Reg& b, const Reg& x, const Reg& y) {
    return map([](Vec i, Vec j, Vec v, Vec w) { return i == j ? v : w; }, a, b, x, y);
  }
  static SK_INLINE Reg if_less(const Reg& a, const Reg& b, const Reg& x, const Reg& y) {
    return map([](Vec i, Vec j, Vec v, Vec w) { return i < j ? v : w; }, a, b, x, y);
  }
  static SK_INLINE bool all_at_least(const Reg& a, const Reg& b) {
    A x[kLanes], y[kLanes];
    store(x, a);
    store(y, b);
    bool all = true;
    for (int l = 0; l < kLanes; ++l) all = all && x[l] >= y[l];
    return all;
  }
  static SK_INLINE bool any_equal(const Reg& a, const Reg& b) {
    A x[kLanes], y[kLanes];
    store(x, a);
    store(y, b);
    bool any = false;
    for (int l = 0; l < kLanes; ++l) any = any || x[l] == y[l];
    return any;
  }
  static SK_INLINE Reg mul_at_least(const Reg& a, const Reg& b, const Reg& least) {
    return map([](Vec x, Vec y, Vec l) { return (x < l ? Vec{} : x) * y; }, a, b, least);
  }
  // The low bits of t and s hold the integers. The type is unsigned because a NaN may leave any bits there.
  static SK_INLINE Reg scale(const Reg& v, const Reg& t, const Reg& s) {
    return map([](Vec x, Vec i, Vec j) { return x * (Vec)(((Bits)i - (Bits)j) << P::kMantissaBits); }, v, t,
               s);
  }
  static SK_INLINE Reg split(const Reg& u, Reg& k) {
    k = map([](Vec x) { return __builtin_convertvector(above(x) >> P::kMantissaBits, Vec); }, u);
    constexpr auto kMantissa = (decltype(P::kHalfRoot)(1) << P::kMantissaBits) - 1;
    return map([](Vec x) { return (Vec)((above(x) & kMantissa) + P::kHalfRoot); }, u);
  }
  template <class Row>
  static SK_CALL void load_columns(Row row, Reg (&v)[kPiece]) {
    for (int c = 0; c < kPiece; ++c) {
      A lanes[kLanes];
      for (int l = 0; l < kLanes; ++l) lanes[l] = widen(row(l)[c]);
      v[c] = load(lanes);
    }
  }
  template <class Row>
  static SK_CALL void store_columns(Row row, const Reg (&v)[kPiece]) {
    A lanes[kPiece][kLanes];
    for (int c = 0; c < kPiece; ++c) store(lanes[c], v[c]);
    for (int l = 0; l < kLanes; ++l) {
      for (int c = 0; c < kPiece; ++c) narrow(lanes[c][l], row(l) + c);
    }
  }
  static SK_INLINE A reduce_add(const Reg& v) {
    return reduce(v, [](A a, A b) { return a + b; });
  }
  static SK_INLINE A reduce_max(const Reg& v) {
    return reduce(v, [](A a, A b) { return a > b ? a : b; });
  }

 private:
  template <class T>
  static SK_INLINE void narrow(A from, T* to) {
    *to = Narrow<T>::from(from);
  }
  static SK_INLINE Int above(Vec u) { return (Int)u - P::kHalfRoot; }
  template <class F, class... Regs>
  static SK_INLINE Reg map(F f, const Regs&... v) {
    return {{f(v.part[0]...), f(v.part[1]...), f(v.part[2]...), f(v.part[3]...)}};
  }
  template <class F>
  static SK_INLINE A reduce(const Reg& v, F f) {
    A lanes[kLanes];
    store(lanes, v);
    for (int k = kLanes / 2; k > 0; k /= 2) {
      for (int l = 0; l < k; ++l) lanes[l] = f(lanes[l], lanes[l + k]);
    }
    return lanes[0];
  }
};

template <>
struct Simd<float> : PortableSimd<float> {};
template <>
struct Simd<double> : PortableSimd<double> {};

static_assert(keeps_contract<Simd<float>, float>() && keeps_contract<Simd<double>, double>());

}  // namespace
}  // namespace softkern::cpu
