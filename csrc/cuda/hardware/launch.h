// SPDX-License-Identifier: Apache-2.0
// A launch as all kinds of hardware take it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../../common/elements.h"
#include "../../common/inline.h"
#include "../api.h"

namespace softkern::cuda {
namespace {

constexpr int kWarp = 32;

/// `blocks` blocks, `cluster` of them together, with so much shared memory each.
struct Dims {
  int64_t blocks;
  int threads;
  int cluster = 1;
  size_t shared = 0;
};

constexpr int64_t kMostBlocksOfGrid = 0x7fffffff;
/// The error of a launch of clusters for which the device has no room.
constexpr char kNoRoom[] = "no room for a cluster of blocks";

template <class To, class From>
SK_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

}  // namespace
}  // namespace softkern::cuda
