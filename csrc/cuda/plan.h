// SPDX-License-Identifier: Apache-2.0
// Which kernel computes rows of a shape, and with how many threads. The plan does not depend on the number of
// rows, so the bits of a row do not depend on the batch. docs/cuda.md shows the plan as a table.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "api.h"

namespace softkern::cuda {

enum class Way : int { kTile, kLanes, kBlock, kCluster, kColumns, kShared, kSharedColumns };

/// How many elements a thread keeps, in the sizes that kernels are compiled for. kNone: it reads the row
/// again.
enum class Kept : int { kNone, kFew, kSome, kMany };

/// How threads access the classes of a row, and how many at a time.
enum class Access : int {
  kElements,  // one at a time, with any stride
  kVectors,   // 16 aligned bytes at a time, a whole number of them per row
  kSpans,     // one at a time, of contiguous classes; a span per warp; kept rows only
};

/// The rows of a kernel that keeps them in shared memory.
struct SharedRows {
  int steps = 0;   // how often a warp goes over its 32 lanes' slots
  int offset = 0;  // of the first row in a block's memory; the team's memory comes before
  int bytes = 0;   // of a row, of a block's part of it, or of all rows of a block
};

struct Plan {
  Way way;
  Kept kept;
  Access access;
  int threads;  // per block
  int team;     // threads per row, in one block; the block has threads / team rows
  int blocks;   // per row
  const char* path;
  SharedRows shared = {};
};

/// What a plan depends on, in addition to the rows' shape and strides.
struct Traits {
  int element_size;
  int few, some, many;  // elements of each Kept; many 0: not compiled
  // The most threads of a block: with vectors or spans; with elements; and if each thread keeps many
  // elements, with vectors and with spans.
  int most_threads, most_with_elements, most_with_many, most_spans_with_many;
  bool spans;       // whether kernels with spans are compiled
  bool many_first;  // whether threads keep many elements, with vectors, also where they could keep some
  bool many_in_clusters;
  // Of kernels with rows in shared memory: how many tensors they keep, or 0 if none is compiled; and from how
  // many bytes of a row on, with vectors and with spans.
  int shared_tensors, shared_from, spans_shared_from;
  int sums, number_size;  // the most numbers that a team adds up at once, and the size of one
  DeviceStream device;
};

#if !defined(SOFTKERN_SHARED_FROM)
#define SOFTKERN_SHARED_FROM (64 << 10)  // another number builds another plan, to compare their speed
#endif
constexpr int kSharedFrom = SOFTKERN_SHARED_FROM;
/// Threads of all blocks of a multiprocessor whose rows are in shared memory: each of them has up to 80
/// registers, or 168 with elements of 8 bytes.
constexpr int threads_of_shared(int element_size) { return element_size == 8 ? 384 : 768; }
/// What the hardware takes of each block's shared memory.
constexpr int kReservedBytes = 1 << 10;

constexpr int kVectorBytes = 16;
constexpr int kLanesOfWarp = 32;
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
/// Up to this number of classes, one thread computes a row alone.
constexpr int64_t kTileClasses = 32;
/// Threads of a block in which each row has one warp or a part of one.
constexpr int kSmallBlock = 128;
/// Threads of a block in which each row has one thread.
constexpr int tile_threads(int element_size) { return element_size == 8 ? kSmallBlock / 2 : kSmallBlock; }

/// The bytes of shared memory that the reductions of a block need, of a row that `blocks` blocks share: two
/// inboxes, and twice the numbers of each warp and block (team.cuh).
constexpr int block_team_bytes(int blocks, int sums, int number_size) {
  return (blocks > 1 ? 16 : 0) + 2 * sums * (kLanesOfWarp + (blocks > 1 ? blocks : 0)) * number_size;
}

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

/// How a block's part of a row lies in its shared memory. With spans, a warp's part is contiguous in the row,
/// and 16-bit elements are in pairs. A pair may lie in two words, so a word of the next part follows, and
/// three that are not used.
inline SharedRows shared_rows(const Traits& traits, Access access, int64_t classes, int threads, int blocks,
                              int offset) {
  const bool vectors = access == Access::kVectors;
  const int slot = vectors ? kVectorBytes : std::max(traits.element_size, 4);
  const int64_t at_once = static_cast<int64_t>(slot / traits.element_size) * threads * blocks;
  const int64_t steps = ceil_div(classes, at_once);
  const int64_t bytes = steps * slot * threads + (vectors ? 0 : threads / kLanesOfWarp * kVectorBytes);
  constexpr int64_t kMost = 1 << 30;  // more than any device has
  return {static_cast<int>(std::min(steps, kMost)), offset, static_cast<int>(std::min(bytes, kMost))};
}

/// The fewest blocks that keep the row in shared memory, if three of them can be on a multiprocessor, or two,
/// or one: while one computes, the others read and write. No blocks if there is no room.
inline Plan plan_in_shared_memory(const Traits& traits, Access access, int64_t classes) {
  for (const int together : {3, 2, 1}) {
    const int threads = threads_of_shared(traits.element_size) / together;
    const int room = std::min(traits.device.shared_of_block,
                              traits.device.shared_of_multiprocessor / together - kReservedBytes);
    for (int blocks = 1; blocks <= traits.device.most_blocks; blocks *= 2) {
      const int team = static_cast<int>(
          ceil_div(block_team_bytes(blocks, traits.sums, traits.number_size), kVectorBytes) * kVectorBytes);
      const SharedRows rows = shared_rows(traits, access, classes, threads, blocks, team);
      if (team + static_cast<int64_t>(traits.shared_tensors) * rows.bytes > room) continue;
      const char* path = blocks > 1 ? "cluster, in shared memory" : "block, in shared memory";
      return {Way::kShared, Kept::kNone, access, threads, threads, blocks, path, rows};
    }
  }
  return {};
}

/// How many bytes of neighbouring rows, at the same class, can be accessed at a time: a power of two, at
/// least the size of an element. `count`: of the rows.
inline int column_word(const Rows& rows, const Shape& shape, int64_t count, int size) {
  const bool single = shape.inner == 1;
  if ((single ? rows.outer_stride : rows.inner_stride) != 1) return size;
  const int64_t elements = rows.class_stride | (single ? count : shape.inner | rows.outer_stride);
  const uint64_t bits = static_cast<uint64_t>(elements * size) | reinterpret_cast<uintptr_t>(rows.data);
  return static_cast<int>(std::min<uint64_t>(bits & (~bits + 1), kVectorBytes));
}

/// A block that keeps so many neighbouring rows whose classes are apart: 64 bytes of each class, two sectors
/// of memory.
constexpr int column_lanes(int element_size) { return 64 / element_size; }
inline Plan plan_columns_in_shared_memory(const Traits& traits, int64_t classes) {
  // Of a thread, if the block has room for more threads. With more classes, sums over threads take less of
  // the time; with fewer, a row has its result sooner.
  constexpr int64_t kClassesOfThread = 64;
  const int lanes = column_lanes(traits.element_size);
  const int64_t of_rows = ceil_div(classes, kClassesOfThread) * lanes;
  const int64_t bytes = classes * lanes * traits.element_size;
  for (const int together : {3, 2, 1}) {
    const int room = std::min(traits.device.shared_of_block,
                              traits.device.shared_of_multiprocessor / together - kReservedBytes);
    const int threads = static_cast<int>(std::min<int64_t>(threads_of_shared(traits.element_size) / together,
                                                           ceil_div(of_rows, kLanesOfWarp) * kLanesOfWarp));
    const int64_t team =
        ceil_div(2 * traits.sums * threads * traits.number_size, kVectorBytes) * kVectorBytes;
    if (team + traits.shared_tensors * bytes > room) continue;
    // An odd number of classes for each thread: the lanes of a warp then read from different banks.
    const auto steps = static_cast<int>(ceil_div(classes, threads / lanes) | 1);
    return {Way::kSharedColumns,
            Kept::kNone,
            Access::kElements,
            threads,
            threads / lanes,
            1,
            "columns, in shared memory",
            {steps, static_cast<int>(team), static_cast<int>(bytes)}};
  }
  return {};
}

/// `operands` are all tensors of the rows; those without data are skipped. `weights` has one number per
/// class, or is null.
inline Plan make_plan(const Shape& shape, const Traits& traits, std::initializer_list<const Rows*> operands,
                      const void* weights = nullptr) {
  constexpr int kWarp = kLanesOfWarp, kClusterBlock = 512;
  const int most_blocks = std::min(traits.device.most_blocks, 8);
  const int64_t classes = shape.classes;
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
    return {Way::kTile, Kept::kNone, kElements, tile_threads(traits.element_size), 1, 1, "a thread a row"};
  }
  const int most_threads = access == kElements ? traits.most_with_elements : traits.most_threads;
  if (columns && traits.shared_tensors > 0) {
    const Plan plan = plan_columns_in_shared_memory(traits, classes);
    if (plan.blocks > 0) return plan;
  }
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
  const int shared_from = vectors ? traits.shared_from : traits.spans_shared_from;
  if (traits.shared_tensors > 0 && access != kElements && classes * traits.element_size > shared_from) {
    const Plan plan = plan_in_shared_memory(traits, access, classes);
    if (plan.blocks > 0) return plan;
  }
  // The more blocks a multiprocessor runs, the more of them read and write while others compute. So small
  // blocks come before large ones, even if their threads have to keep more. A block that fills the
  // multiprocessor is still faster than a cluster, whose blocks wait for each other.
  const bool many_first = traits.many_first && vectors;
  for (const int limit : {256, 512, 1024}) {
    for (const Kept kept : {many_first ? Kept::kMany : Kept::kSome, many_first ? Kept::kSome : Kept::kMany}) {
      const int each = kept == Kept::kSome ? traits.some : many;
      const int most = std::min(limit, kept == Kept::kSome ? most_threads : most_with_many);
      if (classes > static_cast<int64_t>(most) * each) continue;
      const int threads = whole_warps(ceil_div(classes, each));
      return {Way::kBlock, kept, access, threads, threads, 1, "block, kept"};
    }
  }
  if (traits.device.most_blocks > 1) {
    for (const Kept kept : {Kept::kMany, Kept::kSome}) {
      const int each = kept == Kept::kSome ? traits.some : traits.many_in_clusters ? many : 0;
      const int64_t threads_of_block = kept == Kept::kSome ? most_threads : most_with_many;
      if (classes > most_blocks * threads_of_block * each) continue;
      const int64_t wanted_threads = std::min<int64_t>(kClusterBlock, threads_of_block);
      int blocks = 2;
      while (blocks < most_blocks && classes > blocks * wanted_threads * each) blocks *= 2;
      const int threads = whole_warps(ceil_div(classes, static_cast<int64_t>(blocks) * each));
      return {Way::kCluster, kept, access, threads, threads, blocks, "cluster, kept"};
    }
  }
  const int threads = vectors ? traits.most_threads : traits.most_with_elements;
  return {Way::kBlock, Kept::kNone, vectors ? access : kElements, threads, threads, 1, "block, read twice"};
}

}  // namespace softkern::cuda
