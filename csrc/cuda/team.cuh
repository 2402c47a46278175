// SPDX-License-Identifier: Apache-2.0
// The threads that share a row, and their reductions. Every sum is a tree that depends on the number of
// threads only, and all threads get the same bits.
#pragma once

#include "numbers.cuh"

namespace softkern::cuda {
namespace {

/// Which threads share a row.
enum class TeamKind : int {
  kLanes,    // a power of two of a warp's lanes; the other lanes have other rows
  kBlock,    // a block
  kCluster,  // several blocks, which write to each other's shared memory
  kColumn,   // threads 32 apart in a block: neighbouring lanes have neighbouring rows
};

/// How a launch shares its rows among threads.
struct TeamShape {
  TeamKind kind;
  int size;        // threads of a row in one block
  int blocks = 1;  // blocks of a row, a power of two
};

// The most numbers that a row's threads add up at once.
constexpr int kMostSums = 7;

/// The bytes of shared memory that a block of so many threads needs, for a maximum and one round of `sums`
/// sums.
template <class A>
constexpr size_t team_bytes(const TeamShape& shape, int threads, int sums) {
  const size_t numbers = shape.kind == TeamKind::kLanes    ? 0
                         : shape.kind == TeamKind::kBlock  ? kWarp
                         : shape.kind == TeamKind::kColumn ? static_cast<size_t>(threads)
                                                           : kWarp + static_cast<size_t>(shape.blocks);
  return numbers * static_cast<size_t>(1 + sums) * sizeof(A);
}

template <class A>
struct Larger {
  static constexpr A kNeutral = -INFINITY;
  SK_INLINE A operator()(A a, A b) const { return larger(a, b); }
};
template <class A>
struct Plus {
  static constexpr A kNeutral = 0;
  SK_INLINE A operator()(A a, A b) const { return a + b; }
};

/// A thread that computes a row alone.
template <class A>
struct Alone {
  SK_INLINE int rank() const { return 0; }
  SK_INLINE int size() const { return 1; }
  SK_INLINE A max_of(A v) const { return v; }
  template <int K>
  SK_INLINE void sum(A (&)[K]) const {}
};

/// kWhole: the team consists of whole blocks. Kernels whose threads keep many elements have no registers left
/// to distinguish the other kinds.
template <class A, bool kWhole = false>
class Team {
 public:
  explicit SK_INLINE Team(const TeamShape& shape) : shape_(shape) {
    const int thread = static_cast<int>(threadIdx.x);
    free_ = reinterpret_cast<A*>(shared_memory());
    block_ = 0;
    switch (kind()) {
      case TeamKind::kLanes:
        rank_ = thread & (shape.size - 1);
        break;
      case TeamKind::kColumn:
        rank_ = thread / kWarp;
        break;
      default:
        rank_ = thread;
        block_ = static_cast<int>(blockIdx.x) & (shape.blocks - 1);
    }
  }

  /// The team's row, which may not exist. It is computed at each call: to keep the number would take
  /// registers.
  SK_INLINE int64_t row() const {
    uint32_t block = blockIdx.x;
    forget(block);
    const int thread = static_cast<int>(threadIdx.x);
    switch (kind()) {
      case TeamKind::kLanes: {
        const int log2 = log2_of(shape_.size);
        return static_cast<int64_t>(block) * (static_cast<int>(blockDim.x) >> log2) + (thread >> log2);
      }
      case TeamKind::kColumn:
        return static_cast<int64_t>(block) * kWarp + thread % kWarp;
      default:
        return block >> log2_of(shape_.blocks);
    }
  }
  /// The thread's rank among the threads of the row, and the number of these threads.
  SK_INLINE int rank() const { return block_ * shape_.size + rank_; }
  SK_INLINE int size() const { return shape_.blocks * shape_.size; }

  /// To be called once, before anything is written to other blocks: blocks of a cluster may not have begun
  /// yet.
  SK_INLINE void meet() const {
    if (kind() == TeamKind::kCluster) sync_cluster();
  }

  SK_INLINE A max_of(A v) {
    combine<1>(&v, Larger<A>());
    return v;
  }

  template <int K>
  SK_INLINE void sum(A (&v)[K]) {
    static_assert(K <= kMostSums);
    combine<K>(v, Plus<A>());
  }

 private:
  SK_INLINE TeamKind kind() const {
    if (!kWhole || shape_.kind == TeamKind::kCluster) return shape_.kind;
    return TeamKind::kBlock;
  }
  template <int K, class F>
  SK_INLINE void combine(A* v, F f) {
    switch (kind()) {
      case TeamKind::kLanes:
        across_lanes<K>(v, shape_.size, f);
        // The code that follows may write to memory that other threads of the row have read.
        sync_warp();
        break;
      case TeamKind::kBlock:
        across_block<K>(v, f);
        break;
      case TeamKind::kCluster:
        across_block<K>(v, f);
        across_blocks<K>(v, f);
        break;
      case TeamKind::kColumn:
        across_column<K>(v, f);
        break;
    }
  }

  template <int K, class F>
  static SK_INLINE void across_lanes(A* v, int size, F f) {
    for (int offset = size / 2; offset > 0; offset /= 2) {
      SK_UNROLL
      for (int k = 0; k < K; ++k) v[k] = f(v[k], shuffle_xor(v[k], offset));
    }
  }

  // Every reduction takes new memory. To use it again, a second barrier would be needed, after the reads.
  template <int K>
  SK_INLINE A* take(int numbers) {
    A* taken = free_;
    free_ += K * numbers;
    return taken;
  }

  template <int K, class F>
  SK_INLINE void across_block(A* v, F f) {
    A* of_warps = take<K>(kWarp);
    const int warps = static_cast<int>(blockDim.x) / kWarp;
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    across_lanes<K>(v, kWarp, f);
    if (lane == 0) {
      SK_UNROLL
      for (int k = 0; k < K; ++k) of_warps[k * kWarp + static_cast<int>(threadIdx.x) / kWarp] = v[k];
    }
    sync_block();
    SK_UNROLL
    for (int k = 0; k < K; ++k) v[k] = lane < warps ? of_warps[k * kWarp + lane] : F::kNeutral;
    across_lanes<K>(v, kWarp, f);
  }

  template <int K, class F>
  SK_INLINE void across_blocks(A* v, F f) {
    A* of_blocks = take<K>(shape_.blocks);
    if (rank_ < shape_.blocks) {
      SK_UNROLL
      for (int k = 0; k < K; ++k) store_in_block(of_blocks + k * shape_.blocks + block_, rank_, v[k]);
    }
    sync_cluster();
    SK_UNROLL
    for (int k = 0; k < K; ++k) {
      v[k] = of_blocks[k * shape_.blocks];
      for (int b = 1; b < shape_.blocks; ++b) v[k] = f(v[k], of_blocks[k * shape_.blocks + b]);
    }
  }

  template <int K, class F>
  SK_INLINE void across_column(A* v, F f) {
    const int threads = static_cast<int>(blockDim.x);
    A* of_threads = take<K>(threads);
    SK_UNROLL
    for (int k = 0; k < K; ++k) of_threads[k * threads + static_cast<int>(threadIdx.x)] = v[k];
    sync_block();
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    SK_UNROLL
    for (int k = 0; k < K; ++k) {
      v[k] = of_threads[k * threads + lane];
      for (int r = 1; r < shape_.size; ++r) v[k] = f(v[k], of_threads[k * threads + r * kWarp + lane]);
    }
  }

  TeamShape shape_;
  A* free_;
  int rank_, block_;
};

}  // namespace
}  // namespace softkern::cuda
