// SPDX-License-Identifier: Apache-2.0
// Which of a call's rows are computed a row a lane, and how much scratch memory the call needs.
#pragma once

#include "load.h"
#include "store.h"

namespace softkern::cpu {
namespace {

/// The first `rows` rows of a range are computed a row a lane, so many blocks at a time: all, none, or whole
/// blocks.
struct LaneWay {
  const char* name;
  int64_t rows;
  int blocks;
};

/// `strided`: an operand's classes are. `sums`: of exponentials.
template <class A>
SK_INLINE LaneWay lane_way(const Shape& shape, int64_t rows, bool strided, bool sums) {
  if (shape.classes <= kLaneClasses) {
    const bool streams = strided && shape.classes > kFewStreams;
    return {"lanes", rows, streams ? kMostLaneBlocks : kLaneBlocks};
  }
  if (strided) return {"tiles", fits_lanes(shape, rows, sizeof(A)) ? rows : 0, kMostLaneBlocks};
  // A block that is not whole takes as long as one that is.
  if (sums && fits_wide_lanes(shape, rows, sizeof(A)))
    return {"wide lanes", rows - rows % Simd<A>::kLanes, kWideBlocks};
  return {"rows", 0, 0};
}

/// body(order, range, tiles) for the first rows of a range, which are computed a row a lane. `rest` becomes
/// the others. Returns the way of the first rows.
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

/// Kernel::scratch_bytes of a call whose rows that are not computed a row a lane take theirs in take(range,
/// arena).
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
