// SPDX-License-Identifier: Apache-2.0
// In the place of the portable kernels, which take minutes to compile for another CPU: the programs of this
// folder pass over kernels that aren't there.
#include "../../csrc/cpu/isas.h"

namespace softkern::cpu {

template <>
const Kernels KernelsOf<Portable, float>::kernels = {};
template <>
const Kernels KernelsOf<Portable, double>::kernels = {};
template <>
const Kernels KernelsOf<Portable, BFloat16>::kernels = {};
template <>
const Kernels KernelsOf<Portable, Half>::kernels = {};

}  // namespace softkern::cpu
