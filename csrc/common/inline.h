// SPDX-License-Identifier: Apache-2.0
// Macros for functions that several backends compile, each for its own target.
#pragma once

#if defined(__CUDACC__)
#define SK_INLINE __device__ __forceinline__
#define SK_UNROLL _Pragma("unroll")
#else
#define SK_INLINE inline __attribute__((always_inline))
#define SK_UNROLL _Pragma("GCC unroll 16")
#endif
