// SPDX-License-Identifier: Apache-2.0
// What the CPU kernels take and return. Free of torch: kernels compile in a second and can be run under
// sanitizers, valgrind and fuzzers without Python.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/elements.h"
#include "../common/options.h"
#include "../common/ran.h"

namespace softkern::cpu {

/// The rows [begin, end) of a call, and memory of at least scratch_bytes() for this range alone.
struct Range {
  int64_t begin;
  int64_t end;
  void* scratch;
};

/// The classes [begin, end) of a row that threads share: whole blocks, but for the end of the row. A kernel's
/// steps are done one after the other, each by all shares of the row; what a step leaves for the next lies in
/// `shared`, shared_bytes() for the row.
struct Share {
  int64_t row;
  int64_t begin, end;
  int index, count;
  void* shared;
};

struct ForwardArgs {
  Shape shape;
  Rows input;
  Rows output;
  bool stream;  // write past the caches
};

struct BackwardArgs {
  Shape shape;
  Rows grad_output;
  Rows output;  // of the forward
  Rows grad_input;
  bool stream;
};

/// Compute type: double for kDouble, float for the rest.
struct CrossEntropyArgs {
  Shape shape;
  Rows logits;
  const int64_t* target;  // class indices, one a row, in range or ignored; null with probabilities
  Rows probabilities;     // data null with class indices
  const void* weight;     // element type of the logits, one a class; or null
  CrossEntropyOptions options;
  void* loss;          // compute type, one a row
  Rows grad;           // data null: no gradient wanted
  double grad_factor;  // multiplies every gradient row
  bool stream;         // write the gradient past the caches; it must not lie over the logits
};

/// grad row r *= factor[r * factor_step]; out may be the same memory as in.
struct ScaleArgs {
  Shape shape;
  Rows input;
  Rows output;
  const void* factor;   // compute type
  int64_t factor_step;  // 0: one factor for all rows
  bool stream;
};

/// mass[r] = the sum over classes of |probability|.
struct MassArgs {
  Shape shape;
  Rows probabilities;
  void* mass;  // compute type, one a row
  static constexpr bool stream = false;
};

/// An op on whole rows, and on shares of rows whose classes lie side by side; null where rows aren't shared.
template <class Args>
struct Kernel {
  Ran (*rows)(const Args&, Range);
  Ran (*share)(const Args&, const Share&, int step) = nullptr;
  int steps = 0;
};

struct TargetCounts {
  int64_t outside;  // neither a class nor ignored
  int64_t counted;  // not ignored
};

/// Kernels of one element type.
struct Kernels {
  Kernel<ForwardArgs> softmax;
  Kernel<ForwardArgs> log_softmax;
  Kernel<BackwardArgs> softmax_backward;
  Kernel<BackwardArgs> log_softmax_backward;
  Kernel<CrossEntropyArgs> cross_entropy;
  Kernel<ScaleArgs> scale;
  Kernel<MassArgs> mass;  // of float16 alone, which stores gradients at a size of their own
  double (*sum_losses)(const void* losses, int64_t n);  // of the compute type
  TargetCounts (*count_targets)(const int64_t* target, int64_t rows, int64_t classes, int64_t ignore_index);
};

struct KernelTable {
  const char* isa;
  const Kernels* by_type[kElementTypes];
};

/// Rows of up to this many classes are computed a row a lane.
constexpr int64_t kLaneClasses = 32;

// static: an inline function with a linkage would be a weak symbol of every ISA's object.
/// Distance of packed rows: whole vectors, and one cache line more so that a power of two number of classes
/// does not put all rows of a tile into the same cache set.
static inline constexpr int64_t row_pitch(int64_t classes) { return (classes + 15) / 16 * 16 + 16; }

/// Whether kernels work on a packed copy of these rows instead of in place.
static inline constexpr bool is_packed(const Rows& rows) {
  return rows.data != nullptr && rows.class_stride != 1;
}
/// Whether all classes of a row have one element, as the upstream gradient of a sum over classes.
static inline constexpr bool is_spread(const Rows& rows) {
  return rows.data != nullptr && rows.class_stride == 0;
}

/// Sums over a row are sums of blocks of so many bytes of the compute type. A lane adds up 32 numbers, then
/// its blocks: rounding errors grow with both lengths, not with their product.
constexpr int64_t kBlockBytes = 32 * 4 * 64;
/// Whole blocks of every compute type.
constexpr int64_t kShareClasses = kBlockBytes / static_cast<int64_t>(sizeof(float));

/// Rows of up to this many bytes of the compute type are finished when the next has begun, so that nothing
/// waits for their sums. Of longer ones the next would push out of the first-level cache what is to be
/// finished, and there is little to be gained.
constexpr int64_t kLagBytes = 8 << 10;
static inline constexpr int64_t compute_bytes(int64_t classes, size_t element_size) {
  return classes * static_cast<int64_t>(element_size < sizeof(float) ? sizeof(float) : element_size);
}
static inline constexpr bool lags(int64_t classes, size_t element_size) {
  return compute_bytes(classes, element_size) <= kLagBytes;
}

/// Tiles hold what fits a good part of a second-level cache.
constexpr int64_t kTileBytes = 128 << 10;

/// Rows whose classes lie apart are computed a row a lane too, if a row is one block of sums and there are
/// rows enough: a cache line of each class is a vector then.
constexpr int64_t kLaneBytes = 64, kLeastLaneRows = 8;
/// Blocks of lanes that are computed together, if they fit a tile: a block's steps wait for each other, but
/// not for those of other blocks.
constexpr int kBlocks = 4;
/// The most of them, where classes lie apart: lines of memory that follow each other take half the time of as
/// many here and there. Not so with up to kFewStreams classes: there, lines of one class at a time and more
/// blocks were slower.
constexpr int kMostBlocks = 8, kFewStreams = 4;
static inline constexpr bool fits_lanes(const Shape& shape, int64_t rows, size_t element_size) {
  return rows >= kLeastLaneRows && compute_bytes(shape.classes, element_size) <= kBlockBytes;
}
/// Short rows whose classes lie side by side, too, where their exponentials are summed: what is done once a
/// row weighs more than transposing it. By two blocks, which leave the first-level cache room. Against the
/// way of rows: twice as fast at 100 classes of float, with AVX-512 as fast at 250.
constexpr int64_t kWideRowBytes = 1000, kLeastWideRows = 16;
constexpr int kWideBlocks = 2;
static inline constexpr bool fits_wide_lanes(const Shape& shape, int64_t rows, size_t element_size) {
  return rows >= kLeastWideRows && compute_bytes(shape.classes, element_size) <= kWideRowBytes;
}
static inline constexpr int tile_blocks(int64_t classes, int64_t rows, int most_blocks) {
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
static inline constexpr int64_t tile_rows(const Shape& shape, int64_t rows, size_t element_size) {
  int64_t most = kTileBytes / (row_pitch(shape.classes) * static_cast<int64_t>(element_size));
  most = most / kLeastTileRows * kLeastTileRows;
  most = most < kLeastTileRows ? kLeastTileRows : most > kMostTileRows ? kMostTileRows : most;
  return rows < most ? rows : most;
}
/// Whole vectors of rows are packed.
static inline constexpr int64_t packed_rows(const Shape& shape, int64_t rows, size_t element_size) {
  return (tile_rows(shape, rows, element_size) + kLeastTileRows - 1) / kLeastTileRows * kLeastTileRows;
}

/// Upper bound over all kernels: two tiles; or a tile for each strided operand and one row in the
/// compute type, two where rows lag.
static inline constexpr size_t scratch_bytes(const Shape& shape, int64_t rows, size_t element_size,
                                             int strided_operands) {
  const size_t pitch = static_cast<size_t>(row_pitch(shape.classes));
  const size_t strided = static_cast<size_t>(strided_operands);
  const size_t ends = 64 * (strided + 4);
  const bool apart = strided_operands > 0;
  if (apart ? fits_lanes(shape, rows, element_size) : fits_wide_lanes(shape, rows, element_size)) {
    const int most = apart ? kMostBlocks : kWideBlocks;
    const size_t blocks = 2 * static_cast<size_t>(tile_blocks(shape.classes, rows, most));
    const size_t lanes = blocks * static_cast<size_t>(shape.classes * kLaneBytes);  // two rows fit, too
    // A spread operand is packed where the others are rows in place.
    const size_t tile = pitch * static_cast<size_t>(packed_rows(shape, rows, element_size)) * element_size;
    return (lanes < tile ? tile : lanes) + ends;
  }
  const size_t tiles = strided * static_cast<size_t>(packed_rows(shape, rows, element_size));
  const size_t rows_in_work = lags(shape.classes, element_size) ? 2 : 1;
  return pitch * (tiles * element_size + rows_in_work * sizeof(double)) + ends;
}

/// Upper bound over all kernels: the sums of a row's blocks, what each share found, a row in the compute
/// type.
static inline constexpr size_t shared_bytes(int64_t classes, int shares) {
  const size_t blocks = static_cast<size_t>(classes) * sizeof(double) / kBlockBytes + 1;
  return blocks * 3 * 4 * 64 + static_cast<size_t>(shares) * 4 * sizeof(double) +
         static_cast<size_t>(row_pitch(classes)) * sizeof(float) + 64 * 8;
}

/// What the compile units of isa/ export: each is compiled once for an element type, SOFTKERN_ELEMENT, so
/// that a build has something to do for every core.
template <class Isa, class T>
struct KernelsOf {
  static const Kernels kernels;
};
#define SOFTKERN_KERNELS_OF(Isa)                   \
  struct Isa;                                      \
  template <>                                      \
  const Kernels KernelsOf<Isa, float>::kernels;    \
  template <>                                      \
  const Kernels KernelsOf<Isa, double>::kernels;   \
  template <>                                      \
  const Kernels KernelsOf<Isa, BFloat16>::kernels; \
  template <>                                      \
  const Kernels KernelsOf<Isa, Half>::kernels;
SOFTKERN_KERNELS_OF(Portable)
SOFTKERN_KERNELS_OF(Avx2)
SOFTKERN_KERNELS_OF(Avx512)
#undef SOFTKERN_KERNELS_OF

}  // namespace softkern::cpu
