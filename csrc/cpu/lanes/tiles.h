// SPDX-License-Identifier: Apache-2.0
// Which rows are computed together a row a lane, and the memory for them.
#pragma once

#include "order.h"

namespace softkern::cpu {
namespace {

/// Rows first..first+count-1, count <= kLanes. one_slice: they have the same outer index.
struct LaneBlock {
  int64_t first;
  int count;
  bool one_slice;
};

/// body(blocks, count) for the rows of a range, count <= most <= kMostLaneBlocks. All but the last are whole.
template <class A, class Body>
SK_INLINE void for_each_group(const Shape& shape, const Range& range, int most, Body body) {
  constexpr int64_t L = Simd<A>::kLanes;
  // Where a slice has few rows, blocks run across slices.
  const bool slices = shape.inner >= kLeastSliceRows;
  LaneBlock blocks[kMostLaneBlocks];
  for (int64_t first = range.begin; first < range.end;) {
    int64_t end = slices ? (first / shape.inner + 1) * shape.inner : range.end;
    if (end > range.end) end = range.end;
    int count = 0;
    for (; count < most && first < end; ++count) {
      const int64_t rows = end - first < L ? end - first : L;
      blocks[count] = {first, static_cast<int>(rows), slices || shape.inner == 1};
      first += rows;
    }
    body(blocks, count);
  }
}

/// Memory of a call: two tiles. On the stack, for rows of few classes.
template <class A>
class SmallTiles {
  using Reg = typename Simd<A>::Reg;
  static constexpr int kTile = kMostLaneBlocks * kLaneClasses;

 public:
  explicit SmallTiles(int blocks) : blocks_(blocks) {}  // what is in the memory does not matter
  int blocks() const { return blocks_; }
  LaneTile<A> first() { return {memory_, kLaneClasses}; }
  LaneTile<A> second() { return {memory_ + kTile, kLaneClasses}; }

 private:
  int blocks_;
  Reg memory_[2 * kTile];
};

/// In scratch memory, for rows of more classes.
template <class A>
class WideTiles {
  using Reg = typename Simd<A>::Reg;

 public:
  WideTiles(Arena& arena, const Shape& shape, int64_t rows, int most_blocks)
      : classes_(shape.classes), blocks_(tile_blocks(shape.classes, rows, most_blocks)) {
    memory_ = reinterpret_cast<Reg*>(arena.take<A>(2 * blocks_ * classes_ * Simd<A>::kLanes));
  }
  int blocks() const { return blocks_; }
  LaneTile<A> first() const { return {memory_, classes_}; }
  LaneTile<A> second() const { return {memory_ + blocks_ * classes_, classes_}; }

 private:
  int64_t classes_;
  int blocks_;
  Reg* memory_;
};

}  // namespace
}  // namespace softkern::cpu
