// SPDX-License-Identifier: Apache-2.0
// No target region: every 64-bit ARM CPU has NEON.
#if defined(__aarch64__)
#include <arm_neon.h>

#define SOFTKERN_ISA "neon"
#include "../simd/neon.h"
// The trait comes first: the kernels are templates over it.
#include "../kernels/make_table.h"

namespace softkern::cpu {
struct Neon;
template <>
const Kernels KernelsOf<Neon, SOFTKERN_ELEMENT>::kernels = make_kernels<SOFTKERN_ELEMENT>();
}  // namespace softkern::cpu
#endif
