// SPDX-License-Identifier: Apache-2.0
// Elements between memory and registers: one, or 16 bytes of them, converted on the way.
#pragma once

#include "target.h"
#if defined(SOFTKERN_EMULATED)
#include "../cpu/scalar.h"
#endif

namespace softkern::cuda {
namespace {

SK_INLINE float widen(float x) { return x; }
SK_INLINE double widen(double x) { return x; }
#if defined(SOFTKERN_EMULATED)
SK_INLINE float widen(BFloat16 x) { return cpu::widen(x); }
SK_INLINE float widen(Half x) { return cpu::widen(x); }
template <class T>
SK_INLINE T narrow(Compute<T> x) {
  return cpu::Narrow<T>::from(x);
}
template <class T>
SK_INLINE uint32_t narrow_pair(float low, float high) {
  return narrow<T>(low).bits | static_cast<uint32_t>(narrow<T>(high).bits) << 16;
}
#else
SK_INLINE float widen(BFloat16 x) { return bits_as<float>(static_cast<uint32_t>(x.bits) << 16); }
SK_INLINE float widen(Half x) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x.bits));
  return result;
}
// Rounded to nearest even.
template <class T>
SK_INLINE T narrow(Compute<T> x) {
  return x;
}
template <>
SK_INLINE BFloat16 narrow<BFloat16>(float x) {
  BFloat16 result;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
  return result;
}
template <>
SK_INLINE Half narrow<Half>(float x) {
  Half result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
  return result;
}
template <class T>
SK_INLINE uint32_t narrow_pair(float low, float high);
template <>
SK_INLINE uint32_t narrow_pair<BFloat16>(float low, float high) {
  uint32_t result;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
}
template <>
SK_INLINE uint32_t narrow_pair<Half>(float low, float high) {
  uint32_t result;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
}
#endif

/// Two 16-bit elements in a word, the first in its low half.
template <class T>
SK_INLINE void unpack_pair(uint32_t word, float& low, float& high) {
  low = widen(T{static_cast<uint16_t>(word)});
  high = widen(T{static_cast<uint16_t>(word >> 16)});
}

/// The larger ones of two such pairs; of a NaN and a number, the number.
#if defined(SOFTKERN_EMULATED)
template <class T>
SK_INLINE uint32_t larger_pair(uint32_t a, uint32_t b) {
  float a_low, a_high, b_low, b_high;
  unpack_pair<T>(a, a_low, a_high);
  unpack_pair<T>(b, b_low, b_high);
  return narrow_pair<T>(larger(a_low, b_low), larger(a_high, b_high));
}
#else
template <class T>
SK_INLINE uint32_t larger_pair(uint32_t a, uint32_t b);
template <>
SK_INLINE uint32_t larger_pair<BFloat16>(uint32_t a, uint32_t b) {
  uint32_t result;
  asm("max.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}
template <>
SK_INLINE uint32_t larger_pair<Half>(uint32_t a, uint32_t b) {
  uint32_t result;
  asm("max.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}
#endif

/// One element of a type that the kernel is not compiled for.
SK_INLINE double element(const void* at, ElementType type, int64_t i) {
  switch (type) {
    case kDouble:
      return static_cast<const double*>(at)[i];
    case kBFloat16:
      return widen(static_cast<const BFloat16*>(at)[i]);
    case kHalf:
      return widen(static_cast<const Half*>(at)[i]);
    default:
      return static_cast<const float*>(at)[i];
  }
}

struct alignas(16) Words {
  uint32_t of[4];
};

template <class T>
constexpr int kVector = 16 / sizeof(T);

template <class T>
SK_INLINE void unpack(const Words& words, Compute<T>* v) {
  if constexpr (sizeof(T) == 2) {
    SK_UNROLL
    for (int i = 0; i < 4; ++i) unpack_pair<T>(words.of[i], v[2 * i], v[2 * i + 1]);
  } else if constexpr (sizeof(T) == 4) {
    SK_UNROLL
    for (int i = 0; i < kVector<T>; ++i) v[i] = bits_as<float>(words.of[i]);
  } else {
    SK_UNROLL
    for (int i = 0; i < kVector<T>; ++i) {
      v[i] = bits_as<double>(words.of[2 * i] | static_cast<uint64_t>(words.of[2 * i + 1]) << 32);
    }
  }
}

template <class T>
SK_INLINE Words pack(const Compute<T>* v) {
  Words words;
  if constexpr (sizeof(T) == 2) {
    SK_UNROLL
    for (int i = 0; i < 4; ++i) words.of[i] = narrow_pair<T>(v[2 * i], v[2 * i + 1]);
  } else if constexpr (sizeof(T) == 4) {
    SK_UNROLL
    for (int i = 0; i < 4; ++i) words.of[i] = bits_as<uint32_t>(v[i]);
  } else {
    SK_UNROLL
    for (int i = 0; i < 2; ++i) {
      const uint64_t bits = bits_as<uint64_t>(v[i]);
      words.of[2 * i] = static_cast<uint32_t>(bits);
      words.of[2 * i + 1] = static_cast<uint32_t>(bits >> 32);
    }
  }
  return words;
}

/// 16 bytes at p, which is aligned to them.
template <class T>
SK_INLINE void load_vector(const T* p, Compute<T>* v) {
  // By way of a copy: out of the memory itself each part would be read by itself.
  const Words words = *in_global_memory(reinterpret_cast<const Words*>(p));
  unpack<T>(words, v);
}

template <class T>
SK_INLINE void store_vector(T* p, const Compute<T>* v) {
  *in_global_memory(reinterpret_cast<Words*>(p)) = pack<T>(v);
}

/// The first element of a row.
template <class T>
SK_INLINE T* row_of(const Rows& rows, int64_t row, int64_t inner) {
  T* first = in_global_memory(static_cast<T*>(rows.data));
  if (inner == 1) return first + row * rows.outer_stride;
  return first + row / inner * rows.outer_stride + row % inner * rows.inner_stride;
}

}  // namespace
}  // namespace softkern::cuda
