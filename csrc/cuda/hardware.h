// SPDX-License-Identifier: Apache-2.0
// What the kernels take from the hardware: NVIDIA's, or the emulator's. The only file that knows which.
#pragma once

#if defined(SOFTKERN_EMULATED)
#include "hardware/emulated.h"
#else
#include "hardware/nvcc.h"
#endif

namespace softkern::cuda {
namespace {

SK_INLINE double at_least(double x, double least) { return x < least ? least : x; }

}  // namespace
}  // namespace softkern::cuda
