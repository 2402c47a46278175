// SPDX-License-Identifier: Apache-2.0
// Sums over the rows of a call: the counts of targets, and the total of the losses.
#pragma once

#include "../scalar.h"

namespace softkern::cpu {
namespace {

/// Counts the class indices that are neither a class nor ignored, before any kernel reads memory through
/// them.
TargetCounts count_targets(const int64_t* target, int64_t rows, int64_t classes, int64_t ignore_index) {
  uint64_t outside = 0, counted = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t y = target[r];
    const bool counts = y != ignore_index;
    counted += counts;
    outside += counts & ((y < 0) | (y >= classes));
  }
  return {static_cast<int64_t>(outside), static_cast<int64_t>(counted)};
}

/// Sums in double and in a fixed order: the result does not depend on the number of threads.
template <class A>
double sum_losses(const void* losses, int64_t n) {
  const A* x = static_cast<const A*>(losses);
  double part[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int k = 0; k < 8; ++k) part[k] += static_cast<double>(x[i + k]);
  }
  for (; i < n; ++i) part[i % 8] += static_cast<double>(x[i]);
  return ((part[0] + part[4]) + (part[1] + part[5])) + ((part[2] + part[6]) + (part[3] + part[7]));
}

}  // namespace
}  // namespace softkern::cpu
