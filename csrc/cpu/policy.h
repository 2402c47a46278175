// SPDX-License-Identifier: Apache-2.0
// Which way rows go, and in pieces of what size: limits that were measured. Results don't depend on them, but
// for kBlockBytes and kLaneClasses.
#pragma once

#include "scalar.h"

namespace softkern::cpu {
namespace {

/// Rows of up to this many classes are computed a row a lane.
constexpr int64_t kLaneClasses = 32;

/// Distance of packed rows: whole vectors, and one cache line more so that a power of two number of classes
/// does not put all rows of a tile into the same cache set.
constexpr int64_t row_pitch(int64_t classes) { return (classes + 15) / 16 * 16 + 16; }

/// Sums over a row are sums of blocks of so many bytes of the compute type. A lane adds up 32 numbers, then
/// its blocks: rounding errors grow with both lengths, not with their product.
constexpr int64_t kBlockBytes = 32 * 4 * 64;
static_assert(kChunkClasses * sizeof(float) % kBlockBytes == 0,
              "chunks are whole blocks of every compute type");

/// Rows of up to this many bytes of the compute type are finished when the next has begun, so that nothing
/// waits for their sums. Of longer ones the next would push out of the first-level cache what is to be
/// finished, and there is little to be gained.
constexpr int64_t kLagBytes = 8 << 10;
constexpr int64_t compute_bytes(int64_t classes, size_t element_size) {
  return classes * static_cast<int64_t>(element_size < sizeof(float) ? sizeof(float) : element_size);
}
constexpr bool lags(int64_t classes, size_t element_size) {
  return compute_bytes(classes, element_size) <= kLagBytes;
}

/// Tiles hold what fits a good part of a second-level cache.
constexpr int64_t kTileBytes = 128 << 10;

/// Rows with strided classes are computed a row a lane too, if a row is one block of sums and there are rows
/// enough: a cache line of each class is a vector then.
constexpr int64_t kLaneBytes = 64, kLeastLaneRows = 8;
/// Blocks of lanes that are computed together, if they fit a tile: a block's steps wait for each other, but
/// not for those of other blocks.
constexpr int kLaneBlocks = 4;
/// The most of them, where classes are strided: consecutive cache lines load twice as fast as scattered ones.
/// Not so with up to kFewStreams classes: there, lines of one class at a time and more blocks were slower.
constexpr int kMostLaneBlocks = 8, kFewStreams = 4;
constexpr bool fits_lanes(const Shape& shape, int64_t rows, size_t element_size) {
  return rows >= kLeastLaneRows && compute_bytes(shape.classes, element_size) <= kBlockBytes;
}
/// Short rows with contiguous classes, too, where their exponentials are summed: what is done once a row
/// weighs more than transposing it. By two blocks, which leave the first-level cache room. Against the way of
/// rows: twice as fast at 100 classes of float, with AVX-512 as fast at 250.
constexpr int64_t kWideRowBytes = 1000, kLeastWideRows = 16;
constexpr int kWideBlocks = 2;
constexpr bool fits_wide_lanes(const Shape& shape, int64_t rows, size_t element_size) {
  return rows >= kLeastWideRows && compute_bytes(shape.classes, element_size) <= kWideRowBytes;
}
constexpr int tile_blocks(int64_t classes, int64_t rows, int most_blocks) {
  int64_t most = kTileBytes / kLaneBytes / classes;
  if (most > most_blocks) most = most_blocks;
  const int64_t all = (rows + kLeastLaneRows - 1) / kLeastLaneRows;
  return static_cast<int>(most < all ? most : all);
}

/// Others are packed in tiles of rows, in whole cache lines of the tensor: that is how far apart the classes
/// of neighbouring rows lie there.
constexpr int64_t kLeastTileRows = 16, kMostTileRows = 64;
/// Rows of a slice, r / inner, from which on vectors run over its rows though they fill no vector: fewer are
/// fetched one by one, from several slices.
constexpr int64_t kLeastSliceRows = 6;
constexpr int64_t tile_rows(const Shape& shape, int64_t rows, size_t element_size) {
  int64_t most = kTileBytes / (row_pitch(shape.classes) * static_cast<int64_t>(element_size));
  most = most / kLeastTileRows * kLeastTileRows;
  most = most < kLeastTileRows ? kLeastTileRows : most > kMostTileRows ? kMostTileRows : most;
  return rows < most ? rows : most;
}
/// Whole vectors of rows are packed.
constexpr int64_t packed_rows(const Shape& shape, int64_t rows, size_t element_size) {
  return (tile_rows(shape, rows, element_size) + kLeastTileRows - 1) / kLeastTileRows * kLeastTileRows;
}

}  // namespace
}  // namespace softkern::cpu
