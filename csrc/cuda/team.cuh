// SPDX-License-Identifier: Apache-2.0
// The threads that share a row, and their reductions. Every sum is a tree that depends on the number of
// threads only, and all threads get the same bits.
#pragma once

#include "numbers.cuh"
#include "plan.h"

namespace softkern::cuda {
namespace {

/// Which threads share a row.
enum class TeamKind : int {
  kLanes,    // a power of two of a warp's lanes; the other lanes have other rows
  kBlock,    // a block
  kCluster,  // several blocks, which write to each other's shared memory
  kColumn,   // threads kLanes apart in a block: neighbouring lanes have neighbouring rows
};

/// How a launch shares its rows among threads.
struct TeamShape {
  TeamKind kind;
  int size;        // threads of a row in one block
  int blocks = 1;  // blocks of a row, a power of two
  int sums = 2;    // the most numbers that they add up at once, at least 1
};

// The most that any kernel adds up at once.
constexpr int kMostSums = 7;

/// The bytes of shared memory that a block of so many threads needs for its reductions.
template <class A>
constexpr size_t team_bytes(const TeamShape& shape, int threads) {
  switch (shape.kind) {
    case TeamKind::kLanes:
      return 0;
    case TeamKind::kColumn:
      return static_cast<size_t>(2 * shape.sums * threads) * sizeof(A);
    default:
      return static_cast<size_t>(block_team_bytes(shape.blocks, shape.sums, sizeof(A)));
  }
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
  SK_INLINE void publish() const {}
  template <int K>
  SK_INLINE void sum(A (&)[K]) const {}
};

/// Which kinds of teams a kernel has: all of them; blocks and clusters; columns. Kernels whose threads keep
/// many elements have no registers left to distinguish more.
enum class Kinds { kAll, kBlocks, kColumns };

/// kLanes: of a column, a power of two.
template <class A, Kinds kKinds = Kinds::kAll, int kLanes = kWarp>
class Team {
 public:
  explicit SK_INLINE Team(const TeamShape& shape) : shape_(shape) {
    const int thread = static_cast<int>(threadIdx.x);
    block_ = 0;
    switch (kind()) {
      case TeamKind::kLanes:
        rank_ = thread & (shape.size - 1);
        break;
      case TeamKind::kColumn:
        rank_ = thread / kLanes;
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
        return static_cast<int64_t>(block) * kLanes + lane();
      default:
        return block >> log2_of(shape_.blocks);
    }
  }
  /// Of a column's threads, which of the neighbouring rows this one has.
  SK_INLINE int lane() const { return static_cast<int>(threadIdx.x) % kLanes; }
  /// How many rows the launch computes at a time.
  SK_INLINE int rows_at_a_time() const { return static_cast<int>(gridDim.x) >> log2_of(shape_.blocks); }
  /// The thread's rank among the threads of the row, and the number of these threads.
  SK_INLINE int rank() const { return block_ * shape_.size + rank_; }
  SK_INLINE int size() const { return shape_.blocks * shape_.size; }

  /// To be called once, before the first reduction: blocks of a cluster may not have begun yet. They may
  /// still read global memory afterwards.
  SK_INLINE void meet() const {
    if (kind() != TeamKind::kCluster) return;
    if (threadIdx.x < 2) open_inbox(inboxes() + threadIdx.x);
    show_inboxes();
    meet_cluster();
  }

  SK_INLINE A max_of(A v) {
    combine<1>(&v, Larger<A>());
    return v;
  }

  /// What this thread has stored to global memory is visible to the row's other threads after the next
  /// reduction.
  SK_INLINE void publish() const {
    if (kind() == TeamKind::kCluster) publish_to_cluster();
  }

  template <int K>
  SK_INLINE void sum(A (&v)[K]) {
    combine<K>(v, Plus<A>());
  }

 private:
  SK_INLINE TeamKind kind() const {
    if (kKinds == Kinds::kColumns) return TeamKind::kColumn;
    if (kKinds == Kinds::kAll || shape_.kind == TeamKind::kCluster) return shape_.kind;
    return TeamKind::kBlock;
  }
  template <int K, class F>
  SK_INLINE void combine(A* v, F f) {
    static_assert(K <= kMostSums);
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
    ++round_;
  }

  template <int K, class F>
  static SK_INLINE void across_lanes(A* v, int size, F f) {
    for (int offset = size / 2; offset > 0; offset /= 2) {
      SK_UNROLL
      for (int k = 0; k < K; ++k) v[k] = f(v[k], shuffle_xor(v[k], offset));
    }
  }

  // Reductions take turns with two pieces of memory. When one writes to its piece, all threads have read what
  // the last but one wrote there: they did so before the barrier of the last one.
  SK_INLINE uint64_t* inboxes() const { return reinterpret_cast<uint64_t*>(shared_memory()); }
  SK_INLINE A* memory(int numbers) const {
    char* first = shared_memory() + (kind() == TeamKind::kCluster ? 2 * sizeof(uint64_t) : 0);
    return reinterpret_cast<A*>(first) + (round_ & 1) * shape_.sums * numbers;
  }

  template <int K, class F>
  SK_INLINE void across_block(A* v, F f) {
    A* of_warps = memory(kWarp + (kind() == TeamKind::kCluster ? shape_.blocks : 0));
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

  // Each block sends its numbers to all blocks, itself included. Its threads have read the numbers of the
  // round before the last: this is why a block that has got all numbers of a round may send those of the next
  // but one.
  template <int K, class F>
  SK_INLINE void across_blocks(A* v, F f) {
    A* of_blocks = memory(kWarp + shape_.blocks) + shape_.sums * kWarp;
    uint64_t* inbox = inboxes() + (round_ & 1);
    if (threadIdx.x == 0) expect_bytes(inbox, K * shape_.blocks * static_cast<int>(sizeof(A)));
    if (rank_ < shape_.blocks) {
      SK_UNROLL
      for (int k = 0; k < K; ++k) send_to_block(of_blocks + k * shape_.blocks + block_, inbox, rank_, v[k]);
    }
    wait_for_phase(inbox, round_ >> 1 & 1);
    SK_UNROLL
    for (int k = 0; k < K; ++k) {
      v[k] = of_blocks[k * shape_.blocks];
      for (int b = 1; b < shape_.blocks; ++b) v[k] = f(v[k], of_blocks[k * shape_.blocks + b]);
    }
  }

  template <int K, class F>
  SK_INLINE void across_column(A* v, F f) {
    const int threads = static_cast<int>(blockDim.x);
    A* of_threads = memory(threads);
    SK_UNROLL
    for (int k = 0; k < K; ++k) of_threads[k * threads + static_cast<int>(threadIdx.x)] = v[k];
    sync_block();
    SK_UNROLL
    for (int k = 0; k < K; ++k) {
      v[k] = of_threads[k * threads + lane()];
      for (int r = 1; r < shape_.size; ++r) v[k] = f(v[k], of_threads[k * threads + r * kLanes + lane()]);
    }
  }

  TeamShape shape_;
  int rank_, block_, round_ = 0;
};

}  // namespace
}  // namespace softkern::cuda
