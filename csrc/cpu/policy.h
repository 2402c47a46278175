// SPDX-License-Identifier: Apache-2.0
// Measured limits, which choose the way of the rows and the sizes of blocks and tiles. Results depend on
// kBlockBytes and kLaneClasses, and on no other limit.
#pragma once

#include "scalar.h"

namespace softkern::cpu {
namespace {

/// Rows of up to this many classes are computed with one row per lane.
constexpr int64_t kLaneClasses = 32;

/// Distance between packed rows: whole vectors plus one cache line. Without the extra line, a power of two
/// number of classes would put all rows of a tile into the same cache set.
constexpr int64_t row_pitch(int64_t classes) { return (classes + 15) / 16 * 16 + 16; }

/// The sum over a row is a sum of blocks of this many bytes of the compute type. A lane adds up 32 numbers
/// per block, then the sums of its blocks: rounding errors grow with the sum of these two lengths, not with
/// their product.
constexpr int64_t kBlockBytes = 32 * 4 * 64;
static_assert(kChunkClasses * sizeof(float) % kBlockBytes == 0,
              "chunks are whole blocks of every compute type");

/// Rows of up to this many bytes of the compute type are finished after the next row has begun, so that no
/// instruction waits for their sums. With longer rows, the next row would evict the unfinished one from the
/// first-level cache, and the gain would be small.
constexpr int64_t kLagBytes = 8 << 10;
constexpr int64_t compute_bytes(int64_t classes, size_t element_size) {
  return classes * static_cast<int64_t>(element_size < sizeof(float) ? sizeof(float) : element_size);
}
constexpr bool lags(int64_t classes, size_t element_size) {
  return compute_bytes(classes, element_size) <= kLagBytes;
}

/// The size of a tile: a good part of a second-level cache.
constexpr int64_t kTileBytes = 128 << 10;

/// Rows with strided classes are computed with one row per lane too, if a row is a single block of sums and
/// there are enough rows: each cache line of a class is then a vector.
constexpr int64_t kLaneBytes = 64, kLeastLaneRows = 8;
/// The number of blocks of lanes that are computed together, if they fit into a tile. The steps of a block
/// wait for each other, but not for the steps of other blocks.
constexpr int kLaneBlocks = 4;
/// The largest number of blocks, for strided classes: consecutive cache lines load twice as fast as scattered
/// ones. With up to kFewStreams classes, it was slower to load the lines of one class at a time and to use
/// more blocks.
constexpr int kMostLaneBlocks = 8, kFewStreams = 4;
constexpr bool fits_lanes(const Shape& shape, int64_t rows, size_t element_size) {
  return rows >= kLeastLaneRows && compute_bytes(shape.classes, element_size) <= kBlockBytes;
}
/// Short rows with contiguous classes are computed with one row per lane too, by ops that sum exponentials:
/// the work once per row costs more than the transposition. Two blocks at a time leave space in the
/// first-level cache. This is twice as fast as the way of rows at 100 classes of float. At 250 classes and
/// with AVX-512, both take the same time.
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

/// Other strided rows are packed in tiles of rows. A tile covers whole cache lines of the tensor, because
/// neighbouring rows share cache lines there.
constexpr int64_t kLeastTileRows = 16, kMostTileRows = 64;
/// The number of rows in a slice (r / inner) from which on vectors run over these rows, even if they fill no
/// whole vector. Rows of smaller slices are fetched one by one, from several slices.
constexpr int64_t kLeastSliceRows = 6;
constexpr int64_t tile_rows(const Shape& shape, int64_t rows, size_t element_size) {
  int64_t most = kTileBytes / (row_pitch(shape.classes) * static_cast<int64_t>(element_size));
  most = most / kLeastTileRows * kLeastTileRows;
  most = most < kLeastTileRows ? kLeastTileRows : most > kMostTileRows ? kMostTileRows : most;
  return rows < most ? rows : most;
}
/// The rows of a tile, rounded up to whole vectors of rows.
constexpr int64_t packed_rows(const Shape& shape, int64_t rows, size_t element_size) {
  return (tile_rows(shape, rows, element_size) + kLeastTileRows - 1) / kLeastTileRows * kLeastTileRows;
}

}  // namespace
}  // namespace softkern::cpu
