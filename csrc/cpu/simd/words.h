// SPDX-License-Identifier: Apache-2.0
// Columns of rows of 16-bit elements, four words per row. They are converted one register at a time, not one
// row at a time. This is for the x86 ISAs, whose transposes leave rows i and i + 4 in one 128-bit half, and
// rows i + 8 and i + 12 in another.
#pragma once

#include "contract.h"

namespace softkern::cpu {
namespace {

// memcpy, because the intrinsics for half a register take pointers to double, which must not alias other
// types.
SK_INLINE __m128i load_words(const void* low, const void* high) {
  long long half[2];
  __builtin_memcpy(half, low, sizeof(*half));
  __builtin_memcpy(half + 1, high, sizeof(*half));
  return _mm_set_epi64x(half[1], half[0]);
}

/// w[i][0] holds rows i and i + 4, w[i][1] rows i + 8 and i + 12. Row 0 is stored first and row 15 last.
template <class Row>
SK_INLINE void store_words(Row row, const __m128i (&w)[4][2]) {
  for (int half = 0; half < 2; ++half) {
    for (int i = 0; i < 4; ++i) {
      const long long low = _mm_cvtsi128_si64(w[i][half]);
      __builtin_memcpy(row(i + 8 * half), &low, sizeof(low));
    }
    for (int i = 0; i < 4; ++i) {
      const long long high = _mm_extract_epi64(w[i][half], 1);
      __builtin_memcpy(row(i + 8 * half + 4), &high, sizeof(high));
    }
  }
}

}  // namespace
}  // namespace softkern::cpu
