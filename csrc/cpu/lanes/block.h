// SPDX-License-Identifier: Apache-2.0
// The rows of a tensor that are computed together with one row per lane, and their layout in memory.
#pragma once

#include "../rows/operand.h"

namespace softkern::cpu {
namespace {

/// Rows first..first+count-1, count <= kLanes. one_slice: they have the same outer index.
struct LaneBlock {
  int64_t first;
  int count;
  bool one_slice;
};

/// Calls body(blocks, count) for the rows of a range, count <= most <= kMostLaneBlocks. Only the last of
/// these blocks can be partial.
template <class A, class Body>
SK_INLINE void for_each_group(const Shape& shape, const Range& range, int most, Body body) {
  constexpr int64_t L = Simd<A>::kLanes;
  // If slices have few rows, blocks run across slices.
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

template <class T>
class LaneRows {
 protected:
  using S = Simd<Compute<T>>;
  static constexpr int L = S::kLanes, P = S::kPiece, W = S::kWidePiece;
  static_assert(W == P || W == 2 * P);

 public:
  LaneRows(const Rows& rows, const Shape& shape)
      : rows_(rows),
        shape_(shape),
        classes_(static_cast<int>(shape.classes)),
        step_(shape.inner == 1 ? rows.outer_stride : rows.inner_stride) {}

  bool given() const { return rows_.data != nullptr; }

 protected:
  T* at(int64_t r) const { return row_at<T>(rows_, shape_, r); }
  template <class U>
  SK_INLINE void find(const LaneBlock& block, U** row) const {
    if (block.one_slice) {
      row[0] = at(block.first);
      for (int l = 1; l < block.count; ++l) row[l] = row[l - 1] + step_;
    } else {
      for (int l = 0; l < block.count; ++l) row[l] = at(block.first + l);
    }
  }
  /// The last rows of a tensor end before a whole piece does: such pieces go through memory on the stack.
  struct Piece {
    T of[W];
  };

  /// Whether rows are one element apart, so that memory holds vectors over rows.
  bool has_adjacent_rows(const LaneBlock& block) const {
    return block.one_slice && step_ == 1 && rows_.class_stride != 1;
  }

  /// Whether a block's rows follow each other without gaps.
  bool is_contiguous(const LaneBlock& block) const {
    return rows_.class_stride == 1 && block.count == L && block.one_slice && step_ == classes_ &&
           classes_ > 1;
  }

  Rows rows_;
  Shape shape_;
  int classes_;
  int64_t step_;
};

}  // namespace
}  // namespace softkern::cpu
