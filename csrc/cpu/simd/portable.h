// SPDX-License-Identifier: Apache-2.0
// The readable specification of the contract, in the vector extension of GCC and Clang, which compiles to
// whatever registers the CPU has.
#pragma once

#include "contract.h"

// Expanded to the registers of a plain CPU, exp is long; inlined at every unrolled step it would take half a
// minute to compile. A call for 16 numbers costs little beside the work.
#define SOFTKERN_EXP __attribute__((noinline))

namespace softkern::cpu {
namespace {

template <class A>
struct VectorsOf;
template <>
struct VectorsOf<float> {
  typedef float Reg __attribute__((vector_size(64)));
  typedef int32_t Int __attribute__((vector_size(64)));
  static constexpr int kMantissaBits = 23, kExponentBias = 127;
};
template <>
struct VectorsOf<double> {
  typedef double Reg __attribute__((vector_size(64)));
  typedef int64_t Int __attribute__((vector_size(64)));
  static constexpr int kMantissaBits = 52, kExponentBias = 1023;
};

#if defined(__FP_FAST_FMAF)
SK_INLINE void fused(const VectorsOf<float>::Reg& a, const VectorsOf<float>::Reg& b,
                     VectorsOf<float>::Reg& c) {
  for (int l = 0; l < 16; ++l) c[l] = __builtin_fmaf(a[l], b[l], c[l]);
}
#else
// Without the instruction, fmaf is a library call an element. In double the product is exact and the sum
// is rounded to odd, after which the rounding to float is the only one that counts (Boldo & Melquiond, 2008).
__attribute__((noinline)) void fused(const VectorsOf<float>::Reg& a, const VectorsOf<float>::Reg& b,
                                     VectorsOf<float>::Reg& c) {
  typedef float Half8 __attribute__((vector_size(32)));
  typedef double Wide __attribute__((vector_size(64)));
  typedef int64_t Bits __attribute__((vector_size(64)));
  Half8 x[2], y[2], z[2];
  __builtin_memcpy(x, &a, sizeof(x));
  __builtin_memcpy(y, &b, sizeof(y));
  __builtin_memcpy(z, &c, sizeof(z));
  for (int h = 0; h < 2; ++h) {
    const Wide addend = __builtin_convertvector(z[h], Wide);
    const Wide product = __builtin_convertvector(x[h], Wide) * __builtin_convertvector(y[h], Wide);
    const Wide sum = product + addend;
    const Wide part = sum - product;
    const Wide lost = (product - (sum - part)) + (addend - part);
    const Bits bits = (Bits)sum;
    const Bits inexact = (lost > 0) | (lost < 0);  // all ones; 0 for the NaN that an infinite sum leaves here
    const Bits direction = (((Bits)lost ^ bits) >> 63) | 1;
    const Bits odd = bits + (inexact & ~bits & 1) * direction;
    z[h] = __builtin_convertvector((Wide)odd, Half8);
  }
  __builtin_memcpy(&c, z, sizeof(z));
}
#endif
SK_INLINE void fused(const VectorsOf<double>::Reg& a, const VectorsOf<double>::Reg& b,
                     VectorsOf<double>::Reg& c) {
  for (int l = 0; l < 8; ++l) c[l] = __builtin_fma(a[l], b[l], c[l]);
}

template <class A>
struct PortableSimd {
  static constexpr int kLanes = 64 / sizeof(A);
  using V = VectorsOf<A>;
  using Reg = typename V::Reg;
  using Int = typename V::Int;

  static SK_INLINE Reg broadcast(A a) { return Reg{} + a; }
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
  static __attribute__((noinline)) Reg load(const T* p, int n, A fill) {
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
  static __attribute__((noinline)) void store(T* p, const Reg& v, int n) {
    A lanes[kLanes];
    store(lanes, v);
    for (int l = 0; l < n; ++l) p[l] = Narrow<T>::from(lanes[l]);
  }
  static SK_INLINE Reg add(const Reg& a, const Reg& b) { return a + b; }
  static SK_INLINE Reg sub(const Reg& a, const Reg& b) { return a - b; }
  static SK_INLINE Reg mul(const Reg& a, const Reg& b) { return a * b; }
  static SK_INLINE Reg fma(const Reg& a, const Reg& b, Reg c) {
    fused(a, b, c);
    return c;
  }
  static SK_INLINE Reg max(const Reg& a, const Reg& b) { return a > b ? a : b; }
  static SK_INLINE Reg min(const Reg& a, const Reg& b) { return a < b ? a : b; }
  static SK_INLINE Reg add_if_equal(const Reg& s, const Reg& v, const Reg& a, const Reg& b) {
    return s + (a == b ? v : Reg{});
  }
  static SK_INLINE Reg add_unless_equal(const Reg& s, const Reg& v, const Reg& a, const Reg& b) {
    return s + (a == b ? Reg{} : v);
  }
  static SK_INLINE Reg ldexp(const Reg& v, const Reg& n) {
    const Int whole = __builtin_convertvector(n == n ? n : Reg{}, Int);  // a NaN has no integer
    const Int half = whole >> 1;
    // Two factors: 2^n alone may be out of range where v * 2^n, perhaps subnormal, is not.
    return v * pow2(half) * pow2(whole - half);
  }
  static SK_INLINE A reduce_add(const Reg& v) {
    return reduce(v, [](A a, A b) { return a + b; });
  }
  static SK_INLINE A reduce_max(const Reg& v) {
    return reduce(v, [](A a, A b) { return a > b ? a : b; });
  }

 private:
  static SK_INLINE Reg pow2(Int n) { return (Reg)((n + V::kExponentBias) << V::kMantissaBits); }
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
