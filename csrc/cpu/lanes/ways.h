// SPDX-License-Identifier: Apache-2.0
// Chooses the rows of a call that are computed with one row per lane, and counts its scratch memory.
#pragma once

#include "load.h"
#include "store.h"

namespace softkern::cpu {
namespace {

/// The first `rows` rows of a range are computed with one row per lane, `blocks` blocks at a time. These are
/// all rows, none, or whole blocks.
struct LaneWay {
  const char* name;
  int64_t rows;
  int blocks;
};

/// `strided`: the classes of an operand are strided. `sums`: the op sums exponentials.
template <class A>
SK_INLINE LaneWay lane_way(const Shape& shape, int64_t rows, bool strided, bool sums) {
  if (shape.classes <= kLaneClasses) {
    const bool streams = strided && shape.classes > kFewStreams;
    return {"lanes", rows, streams ? kMostLaneBlocks : kLaneBlocks};
  }
  if (strided) return {"tiles", fits_lanes(shape, rows, sizeof(A)) ? rows : 0, kMostLaneBlocks};
  // A partial block takes as long as a whole one.
  if (sums && fits_wide_lanes(shape, rows, sizeof(A)))
    return {"wide lanes", rows - rows % Simd<A>::kLanes, kWideBlocks};
  return {"rows", 0, 0};
}

/// Calls body(order, range, tiles) for the first rows of a range, which are computed with one row per lane.
/// `rest` is the range, and becomes that of the other rows. Returns the way of the first rows.
template <class A, class Body>
SK_INLINE Ran in_lanes(const Shape& shape, Range& rest, bool strided, bool sums, Body body) {
  const LaneWay way = lane_way<A>(shape, rest.end - rest.begin, strided, sums);
  const Range first{rest.begin, rest.begin + way.rows, rest.scratch};
  rest.begin = first.end;
  if (shape.classes <= kLaneClasses) {
    body(FewClasses<A>{}, first, SmallTiles<A>(way.blocks));
  } else if (way.rows > 0) {
    Arena arena(first.scratch);
    body(AsRows<A>{}, first, WideTiles<A>(arena, shape, way.rows, way.blocks));
  }
  return {SOFTKERN_ISA, way.name};
}

/// Kernel::scratch_bytes of a call. take(range, arena) takes the memory of the rows that are not computed
/// with one row per lane.
template <class A, class Take>
SK_INLINE size_t scratch_of(const Shape& shape, int64_t rows, bool strided, bool sums, Take take) {
  const LaneWay way = lane_way<A>(shape, rows, strided, sums);
  Arena lanes, others;
  if (way.rows > 0 && shape.classes > kLaneClasses) WideTiles<A>(lanes, shape, way.rows, way.blocks);
  if (way.rows < rows) take(Range{way.rows, rows, nullptr}, others);
  return lanes.bytes() > others.bytes() ? lanes.bytes() : others.bytes();
}

}  // namespace
}  // namespace softkern::cpu
