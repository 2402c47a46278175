// SPDX-License-Identifier: Apache-2.0
#define SOFTKERN_ISA "portable"
#include "../simd/portable.h"
// The trait comes first: the kernels are templates over it.
#include "../kernels/make_table.h"

namespace softkern::cpu {
struct Portable;
template <>
const Kernels KernelsOf<Portable, SOFTKERN_ELEMENT>::kernels = make_kernels<SOFTKERN_ELEMENT>();
}  // namespace softkern::cpu
