// SPDX-License-Identifier: Apache-2.0
// 16-byte accesses to rows that begin anywhere. A thread has the classes that it would have in a row that
// begins 16 bytes aligned, so that a row's bits don't depend on where it lies. Its chunk lies in two aligned
// words, of which it reads both. It writes the word that begins in its chunk, whose other part the next lane
// has. Words that are not the row's alone go by elements: those at its ends, and between two warps.
#pragma once

#include "memory.cuh"

namespace softkern::cuda {
namespace {

constexpr int kWordsBytes = static_cast<int>(sizeof(Words));

/// Bytes [by, by + 16) of the two after each other, by < 16 a multiple of the element's size.
template <int kElement>
SK_INLINE Words bytes_from(const Words& low, const Words& high, int by) {
  static_assert(kElement == 2 || kElement == 4 || kElement == 8);
  // By halves, because registers have no index.
  const bool by_8 = by & 8, by_4 = by & 4;
  uint32_t a[6], b[5];
  SK_UNROLL
  for (int i = 0; i < 6; ++i)
    a[i] = by_8 ? (i < 2 ? low.of[i + 2] : high.of[i - 2]) : i < 4 ? low.of[i] : high.of[i - 4];
  SK_UNROLL
  for (int i = 0; i < 5; ++i) b[i] = kElement < 8 && by_4 ? a[i + 1] : a[i];
  Words result;
  SK_UNROLL
  for (int i = 0; i < 4; ++i) result.of[i] = kElement < 4 ? shift_right(b[i], b[i + 1], 8 * (by & 2)) : b[i];
  return result;
}

/// Where the row's words lie: so many bytes before its chunks.
SK_INLINE int shift_of(const void* row) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(row) % kWordsBytes);
}

template <class T, class Index>
SK_INLINE T* at_byte(T* row, Index offset) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return reinterpret_cast<T*>(reinterpret_cast<Byte*>(row) + offset);
}

/// Chunks at the classes first, first + step, ... of a row of so many; `fill` behind its end.
template <class T, class Index, int N>
SK_INLINE void load_shifted(const T* row, Index classes, Index first, Index step, Words (&chunks)[N],
                            T fill) {
  constexpr Index kSize = sizeof(T);
  const int shift = shift_of(row);
  const Index bytes = classes * kSize;
  Words high[N];
  SK_UNROLL
  for (int j = 0; j < N; ++j) {
    const Index word = (first + j * step) * kSize - shift;
    chunks[j] = high[j] = Words{};
    if (word >= 0 && word + kWordsBytes <= bytes) {
      chunks[j] = *in_global_memory(reinterpret_cast<const Words*>(at_byte(row, word)));
    }
    if (shift != 0 && word + 2 * kWordsBytes <= bytes) {
      high[j] = *in_global_memory(reinterpret_cast<const Words*>(at_byte(row, word + kWordsBytes)));
    }
  }
  SK_UNROLL
  for (int j = 0; j < N; ++j) chunks[j] = bytes_from<kSize>(chunks[j], high[j], shift);
  SK_UNROLL
  for (int j = 0; j < N; ++j) {
    const Index c = first + j * step, word = c * kSize - shift;
    if (word >= 0 && word + (shift == 0 ? 1 : 2) * kWordsBytes <= bytes) continue;
    Elements<T> own;
    SK_UNROLL
    for (int i = 0; i < kVector<T>; ++i) own.of[i] = c + i < classes ? in_global_memory(row)[c + i] : fill;
    chunks[j] = bits_as<Words>(own);
  }
}

/// A chunk at class c. All lanes of a warp have to come here together, with chunks next to each other.
template <class T, class Index, int V>
SK_INLINE void store_shifted(T* row, Index classes, Index c, const Compute<T> (&v)[V]) {
  constexpr Index kSize = sizeof(T);
  const Words own = pack<T>(v);
  Words next;
  SK_UNROLL
  for (int i = 0; i < 4; ++i) next.of[i] = shuffle_down(own.of[i]);
  const Index bytes = classes * kSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  // The first word that begins in the chunk begins at this byte of it.
  const int from = (kWordsBytes - shift_of(row)) % kWordsBytes;
  const Index word = c * kSize + from;
  const bool whole = word + kWordsBytes <= bytes && (from == 0 || lane < kWarp - 1);
  const bool with_previous = lane > 0 && word <= bytes;
  if (whole)
    *in_global_memory(reinterpret_cast<Words*>(at_byte(row, word))) = bytes_from<kSize>(own, next, from);
  if (whole && (from == 0 || with_previous)) return;
  SK_UNROLL
  for (int i = 0; i < V; ++i) {
    const bool written = i * kSize < from ? with_previous : whole;
    if (!written && c + i < classes) in_global_memory(row)[c + i] = narrow<T>(v[i]);
  }
}

}  // namespace
}  // namespace softkern::cuda
