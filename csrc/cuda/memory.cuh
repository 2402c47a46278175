// SPDX-License-Identifier: Apache-2.0
// Moves elements between memory and registers, one element or 16 bytes at a time, and converts them.
#pragma once

#include "hardware.h"

namespace softkern::cuda {
namespace {

/// Two 16-bit elements in a word, the first in its low half.
template <class T>
SK_INLINE void unpack_pair(uint32_t word, float& low, float& high) {
  low = widen(T{static_cast<uint16_t>(word)});
  high = widen(T{static_cast<uint16_t>(word >> 16)});
}

/// The larger one of the two.
template <class T>
SK_INLINE float larger_half(uint32_t word) {
  float low, high;
  unpack_pair<T>(word, low, high);
  return larger(low, high);
}

/// One element, whose type is known at run time only.
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

/// Loads 16 bytes from p, which is aligned to 16 bytes.
template <class T>
SK_INLINE void load_vector(const T* p, Compute<T>* v) {
  // Copies the 16 bytes first. Unpacked from memory, each part would be loaded separately.
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
