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

/// The beginning of each kernel that may begin before the previous one of its stream has ended. Before it,
/// nothing may be accessed.
SK_INLINE void follow_previous_kernel() {
  let_next_kernel_begin();
  wait_for_previous_kernel();
}

SK_INLINE double at_least(double x, double least) { return x < least ? least : x; }

}  // namespace
}  // namespace softkern::cuda
