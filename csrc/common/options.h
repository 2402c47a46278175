// SPDX-License-Identifier: Apache-2.0
// Options of the ops as they travel from the dispatcher to the kernels of every backend.
#pragma once

#include <cstdint>

namespace softkern {

/// In the order of torch's own enum (torch.nn._reduction.get_enum).
enum Reduction : int64_t { kNone = 0, kMean = 1, kSum = 2 };

struct CrossEntropyOptions {
  int64_t ignore_index = -100;
  double label_smoothing = 0;
};

}  // namespace softkern
