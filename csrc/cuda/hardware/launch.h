// SPDX-License-Identifier: Apache-2.0
// A launch, in the form that NVIDIA's hardware and the emulator take.
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

/// A grid of `blocks` blocks, in clusters of `cluster` blocks, with `shared` bytes of shared memory per
/// block. With `stays`, a block goes on with further rows, and the grid has at most as many blocks as the
/// device runs at a time.
struct Dims {
  int64_t blocks;
  int threads;
  int cluster = 1;
  size_t shared = 0;
  bool stays = false;
};

constexpr int64_t kMostBlocksOfGrid = 0x7fffffff;
/// The error of a launch whose clusters don't fit on the device.
constexpr char kNoRoom[] = "no room for a cluster of blocks";

/// The blocks of a grid if the device runs `at_a_time` clusters at a time.
inline int64_t blocks_of(const Dims& dims, int at_a_time) {
  const int64_t room = static_cast<int64_t>(at_a_time) * dims.cluster;
  return dims.stays && at_a_time > 0 && room < dims.blocks ? room : dims.blocks;
}

template <class To, class From>
SK_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

}  // namespace
}  // namespace softkern::cuda
