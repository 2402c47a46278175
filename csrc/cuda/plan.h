// SPDX-License-Identifier: Apache-2.0
// Which kernel computes rows of a shape, and with how many threads. The plan does not depend on the number of
// rows, so the bits of a row do not depend on the batch. docs/cuda.md shows the plan as a table.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "api.h"

namespace softkern::cuda {

enum class Way : int { kTile, kLanes, kBlock, kCluster, kColumns };

/// How many elements a thread keeps, in the sizes that kernels are compiled for. kNone: it reads the row
/// again.
enum class Kept : int { kNone, kFew, kSome, kMany };

/// How threads access the classes of a row, and how many at a time.
enum class Access : int {
  kElements,  // one at a time, with any stride
  kVectors,   // 16 aligned bytes at a time, a whole number of them per row
  kSpans,     // one at a time, of contiguous classes; a span per warp; kept rows only
};

struct Plan {
  Way way;
  Kept kept;
  Access access;
  int threads;  // per block
  int team;     // threads per row, in one block
  int blocks;   // per row
  const char* path;
};

/// What a plan depends on, in addition to the rows' shape and strides.
struct Traits {
  int element_size;
  int few, some, many;  // elements of each Kept; many 0: not compiled
  // The most threads of a block: with vectors or spans; with elements; and if each thread keeps many
  // elements, with vectors and with spans.
  int most_threads, most_with_elements, most_with_many, most_spans_with_many;
  bool spans;  // whether kernels with spans are compiled
  bool clusters;
};

constexpr int kVectorBytes = 16;
/// Up to this number of classes, one thread computes a row alone.
constexpr int64_t kTileClasses = 32;
/// Threads of a block in which each row has one warp or a part of one.
constexpr int kSmallBlock = 128;

inline bool takes_vectors(const Rows& rows, int vector, int64_t inner) {
  return rows.class_stride == 1 && reinterpret_cast<uintptr_t>(rows.data) % kVectorBytes == 0 &&
         rows.outer_stride % vector == 0 && (inner == 1 || rows.inner_stride % vector == 0);
}

/// Whether threads can access the rows of all tensors, and one number per class, by 16 bytes. Tensors without
/// data are skipped; `weights` may be null.
inline bool all_take_vectors(const Shape& shape, int vector, std::initializer_list<const Rows*> operands,
                             const void* weights) {
  bool vectors = shape.classes % vector == 0 && reinterpret_cast<uintptr_t>(weights) % kVectorBytes == 0;
  for (const Rows* rows : operands) {
    vectors = vectors && (rows->data == nullptr || takes_vectors(*rows, vector, shape.inner));
  }
  return vectors;
}

/// Whether neighbouring rows are contiguous and the classes are strided.
inline bool is_columns(const Rows& rows, int64_t inner) {
  return rows.class_stride != 1 && (inner == 1 ? rows.outer_stride : rows.inner_stride) == 1;
}

/// `operands` are all tensors of the rows; those without data are skipped. `weights` has one number per
/// class, or is null.
inline Plan make_plan(const Shape& shape, const Traits& traits, std::initializer_list<const Rows*> operands,
                      const void* weights = nullptr) {
  constexpr int kWarp = 32, kClusterBlock = 512, kMostBlocksOfCluster = 8;
  const int64_t classes = shape.classes;
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const auto power_of_two = [](int64_t n) {
    int p = 1;
    while (p < n) p *= 2;
    return p;
  };
  const auto whole_warps = [&](int64_t threads) {
    return static_cast<int>(ceil_div(threads, kWarp) * kWarp);
  };

  const int vector = kVectorBytes / traits.element_size;
  bool columns = false, side_by_side = traits.spans;
  const bool vectors = all_take_vectors(shape, vector, operands, weights);
  for (const Rows* rows : operands) {
    if (rows->data == nullptr) continue;
    columns = columns || is_columns(*rows, shape.inner);
    side_by_side = side_by_side && rows->class_stride == 1;
  }
  constexpr Access kElements = Access::kElements;
  const Access access = vectors ? Access::kVectors : side_by_side ? Access::kSpans : kElements;
  if (classes <= kTileClasses) {
    const int threads = traits.element_size == 8 ? kSmallBlock / 2 : kSmallBlock;
    return {Way::kTile, Kept::kNone, kElements, threads, 1, 1, "a thread a row"};
  }
  const int most_threads = access == kElements ? traits.most_with_elements : traits.most_threads;
  if (columns) {
    const int64_t team = ceil_div(classes, traits.some);
    if (team * kWarp <= most_threads) {
      return {Way::kColumns,          Kept::kSome, kElements,      static_cast<int>(team) * kWarp,
              static_cast<int>(team), 1,           "columns, kept"};
    }
    return {Way::kColumns,        Kept::kNone, kElements, most_threads, most_threads / kWarp, 1,
            "columns, read twice"};
  }
  if (classes <= static_cast<int64_t>(kWarp) * traits.some) {
    // Few lanes with many classes each: a lane's work per row and the sums over lanes cost as much as 8
    // classes. Without vectors, neighbouring lanes read neighbouring elements, and few lanes would read few
    // bytes at a time.
    if (vectors) {
      const int team = power_of_two(ceil_div(classes, traits.some));
      return {Way::kLanes, Kept::kSome, access, kSmallBlock, team, 1, "lanes, kept"};
    }
    if (classes <= static_cast<int64_t>(kWarp) * traits.few) {
      const int team = power_of_two(ceil_div(classes, traits.few));
      return {Way::kLanes, Kept::kFew, kElements, kSmallBlock, team, 1, "lanes, kept"};
    }
    return {Way::kLanes, Kept::kSome, access, kSmallBlock, kWarp, 1, "lanes, kept"};
  }
  const int many = access == kElements ? 0 : traits.many;
  const int most_with_many = vectors ? traits.most_with_many : traits.most_spans_with_many;
  // The more blocks a multiprocessor runs, the more of them read and write while others compute. So small
  // blocks come before large ones, even if their threads have to keep more. A block that fills the
  // multiprocessor is still faster than a cluster, whose blocks wait for each other.
  for (const int limit : {256, 512, 1024}) {
    for (const Kept kept : {Kept::kSome, Kept::kMany}) {
      const int each = kept == Kept::kSome ? traits.some : many;
      const int most = std::min(limit, kept == Kept::kSome ? most_threads : most_with_many);
      if (classes > static_cast<int64_t>(most) * each) continue;
      const int threads = whole_warps(ceil_div(classes, each));
      return {Way::kBlock, kept, access, threads, threads, 1, "block, kept"};
    }
  }
  if (traits.clusters) {
    for (const Kept kept : {Kept::kMany, Kept::kSome}) {
      const int each = kept == Kept::kSome ? traits.some : many;
      const int64_t threads_of_block = kept == Kept::kSome ? most_threads : most_with_many;
      if (classes > kMostBlocksOfCluster * threads_of_block * each) continue;
      const int64_t wanted_threads = std::min<int64_t>(kClusterBlock, threads_of_block);
      int blocks = 2;
      while (blocks < kMostBlocksOfCluster && classes > blocks * wanted_threads * each) blocks *= 2;
      const int threads = whole_warps(ceil_div(classes, static_cast<int64_t>(blocks) * each));
      return {Way::kCluster, kept, access, threads, threads, blocks, "cluster, kept"};
    }
  }
  const int threads = vectors ? traits.most_threads : traits.most_with_elements;
  return {Way::kBlock, Kept::kNone, vectors ? access : kElements, threads, threads, 1, "block, read twice"};
}

}  // namespace softkern::cuda
