// SPDX-License-Identifier: Apache-2.0
// The kernels that an ISA exports: one object file for each element type.
#pragma once

#include "cross_entropy_ways.h"
#include "log_softmax.h"
#include "mass.h"
#include "row_losses_ways.h"
#include "row_merge.h"
#include "scale.h"
#include "softmax.h"
#include "targets.h"

namespace softkern::cpu {
namespace {

template <class T>
constexpr Kernels make_kernels() {
  return {softmax_kernel<T>(),
          log_softmax_kernel<T>(),
          softmax_backward_kernel<T>(),
          log_softmax_backward_kernel<T>(),
          cross_entropy_kernel<T>(),
          row_losses_kernel<T>(),
          row_merge_kernel<T>(),
          scale_kernel<T>(),
          mass_kernel<T>(),
          &sum_losses<Compute<T>>,
          &count_targets};
}

}  // namespace
}  // namespace softkern::cpu
