// SPDX-License-Identifier: Apache-2.0
// Class indices of the dtypes that softkern takes.
#pragma once

#include "api.h"
#include "hardware.h"

namespace softkern::cuda {
namespace {

constexpr const char* kOutOfBounds = "softkern.cross_entropy: Target is out of bounds.";

struct IndexTarget {
  const void* at;  // null without class indices
  IndexType type;
  int64_t ignore_index;

  SK_INLINE int64_t of(int64_t row) const {
    switch (type) {
      case kInt32:
        return static_cast<const int32_t*>(at)[row];
      case kUInt8:
        return static_cast<const uint8_t*>(at)[row];
      default:
        return static_cast<const int64_t*>(at)[row];
    }
  }
};

}  // namespace
}  // namespace softkern::cuda
