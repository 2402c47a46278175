// SPDX-License-Identifier: Apache-2.0
// The functions of the hardware that kernels use: NVIDIA's, or the emulator's. Only this file knows which.
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
