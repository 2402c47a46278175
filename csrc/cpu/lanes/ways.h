// SPDX-License-Identifier: Apache-2.0
// Which of a call's rows are computed a row a lane.
#pragma once

#include "operand.h"

namespace softkern::cpu {
namespace {

/// body(order, range, memory) for the first rows of a range, which are computed a row a lane: all of them,
/// none, or whole blocks. `rest` becomes the others. `strided`: an operand's classes are. `sums`:
/// of exponentials. Returns the way of the first rows.
template <class A, class Body>
SK_INLINE Ran in_lanes(const Shape& shape, Range& rest, bool strided, bool sums, Body body) {
  const Range range = rest;
  const int64_t rows = range.end - range.begin;
  if (shape.classes <= kLaneClasses) {
    rest.begin = range.end;
    const bool streams = strided && shape.classes > kFewStreams;
    body(FewClasses<A>{}, range, SmallTiles<A>(streams ? kMostLaneBlocks : kLaneBlocks));
    return {SOFTKERN_ISA, "lanes"};
  }
  if (strided) {
    if (fits_lanes(shape, rows, sizeof(A))) {
      rest.begin = range.end;
      body(AsRows<A>{}, range, WideTiles<A>(range, shape, kMostLaneBlocks));
    }
    return {SOFTKERN_ISA, "tiles"};
  }
  if (sums && fits_wide_lanes(shape, rows, sizeof(A))) {
    // A block that is not whole takes as long as one that is.
    rest.begin = range.end - rows % Simd<A>::kLanes;
    const Range blocks{range.begin, rest.begin, range.scratch};
    body(AsRows<A>{}, blocks, WideTiles<A>(blocks, shape, kWideBlocks));
    return {SOFTKERN_ISA, "wide lanes"};
  }
  return {SOFTKERN_ISA, "rows"};
}

}  // namespace
}  // namespace softkern::cpu
