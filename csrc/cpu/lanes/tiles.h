// SPDX-License-Identifier: Apache-2.0
// Memory for blocks of rows that are computed with one row per lane.
#pragma once

#include "../rows/operand.h"

namespace softkern::cpu {
namespace {

/// Memory for the blocks of a group.
template <class A>
struct LaneTile {
  typename Simd<A>::Reg* data;
  int64_t pitch;
  SK_INLINE typename Simd<A>::Reg* operator[](int b) const { return data + b * pitch; }
};

/// Two tiles on the stack, for rows of few classes.
template <class A>
class SmallTiles {
  using Reg = typename Simd<A>::Reg;
  static constexpr int kTile = kMostLaneBlocks * kLaneClasses;

 public:
  explicit SmallTiles(int blocks) : blocks_(blocks) {}  // memory_ stays uninitialised
  int blocks() const { return blocks_; }
  LaneTile<A> first() { return {memory_, kLaneClasses}; }
  LaneTile<A> second() { return {memory_ + kTile, kLaneClasses}; }

 private:
  int blocks_;
  Reg memory_[2 * kTile];
};

/// Two tiles in scratch memory, for rows of more classes.
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
