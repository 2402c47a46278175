// SPDX-License-Identifier: Apache-2.0
// A target region instead of -m flags: headers that are included before the region can't be compiled for this
// ISA.
#if defined(__x86_64__)
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12 warns about its own intrinsics
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "../api.h"

#define SOFTKERN_ISA "avx512"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif
#include "../simd/avx512.h"
// The trait comes first: the kernels are templates over it.
#include "../kernels/make_table.h"

namespace softkern::cpu {
struct Avx512;
template <>
const Kernels KernelsOf<Avx512, SOFTKERN_ELEMENT>::kernels = make_kernels<SOFTKERN_ELEMENT>();
}  // namespace softkern::cpu
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
