// SPDX-License-Identifier: Apache-2.0
// Conversions of one element between storage and compute types, with the same bits as the vector instructions
// of the ISAs. Everything is in an anonymous namespace because each ISA compiles its own copy: with a shared
// inline function, a program on an older CPU could get the copy of the AVX-512 object.
#pragma once

#include "../common/inline.h"
#include "api.h"

namespace softkern::cpu {
namespace {

// For functions that are called once per row or per block of rows: the call costs little beside the work.
// Inlined everywhere, they would take most of the compile time.
#define SK_CALL __attribute__((noinline))

template <class To, class From>
SK_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

SK_INLINE float widen(float x) { return x; }
SK_INLINE double widen(double x) { return x; }
SK_INLINE float widen(BFloat16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
SK_INLINE float widen(Half x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16;
  const uint32_t magnitude = (x.bits & 0x7fffu) << 13;
  // The multiplication re-biases the exponent and also normalises subnormals.
  const uint32_t finite = bit_cast<uint32_t>(bit_cast<float>(magnitude) * 0x1p112f);
  const uint32_t quiet = (x.bits & 0x3ffu) != 0 ? 0x400000u : 0u;
  const uint32_t special = 0x7f800000u | (magnitude & 0x7fffffu) | quiet;
  return bit_cast<float>(sign | ((x.bits & 0x7c00u) == 0x7c00u ? special : finite));
}

template <class T>
struct Narrow;
template <>
struct Narrow<float> {
  static SK_INLINE float from(float x) { return x; }
};
template <>
struct Narrow<double> {
  static SK_INLINE double from(double x) { return x; }
};
template <>
struct Narrow<BFloat16> {
  static SK_INLINE BFloat16 from(float x) {
    const uint32_t bits = bit_cast<uint32_t>(x);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
    return {static_cast<uint16_t>(x == x ? rounded : 0x7fc0u)};
  }
};
template <>
struct Narrow<Half> {
  static SK_INLINE Half from(float x) {
    const uint32_t bits = bit_cast<uint32_t>(x);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    uint32_t half;
    if (magnitude > 0x7f800000u) {
      half = 0x7e00u | ((magnitude >> 13) & 0x3ffu);  // NaN: quiet, payload kept
    } else if (magnitude >= 0x477ff000u) {
      half = 0x7c00u;  // 65520 and more round to infinity
    } else if (magnitude < 0x38800000u) {
      // Below 2^-14 the result is subnormal: adding 0.5 makes the FPU round at the last subnormal bit.
      half = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
    } else {
      half = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
    }
    return {static_cast<uint16_t>(sign | half)};
  }
};

}  // namespace
}  // namespace softkern::cpu
