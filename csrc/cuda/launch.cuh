// SPDX-License-Identifier: Apache-2.0
// From a plan to a launch.
#pragma once

#include "plan.h"
#include "row.cuh"
#include "tile.cuh"

namespace softkern::cuda {
namespace {

/// What a kind of kernel keeps of each tensor in a thread, and how many threads its blocks have at most: the
/// more, the fewer registers each. Of 16-bit elements twice as many come in a second, so that what a thread
/// does once a row has to be shared by more of them.
template <class T>
struct OneTensor {
  static constexpr int kFew = kVector<T> > 4 ? kVector<T> : 4;
  static constexpr int kSome = 64 / sizeof(T);
  static constexpr int kMany = sizeof(T) == 2 ? 0 : 2 * kSome;
  static constexpr int kMostThreads = sizeof(T) == 8 ? 512 : 1024;
  static constexpr int kMostWithoutVectors = 512, kMostWithMany = kMostThreads;
  static constexpr int kSmallRegisters = sizeof(T) == 8 ? 128 : 64;
};
template <class T>
struct TwoTensors : OneTensor<T> {
  static constexpr int kSome = sizeof(T) == 8 ? 8 : 16, kMany = 0;
};

template <class K, int V, int E>
constexpr int most_threads() {
  return E > 0 && E <= K::kFew ? kSmallBlock
         : V == 1              ? K::kMostWithoutVectors
         : E <= K::kSome       ? K::kMostThreads
                               : K::kMostWithMany;
}
/// Of a thread of such blocks; a multiprocessor has 65,536, a thread at most 255.
template <class K, int V, int E>
constexpr int most_registers() {
  constexpr int threads = most_threads<K, V, E>();
  return threads == kSmallBlock ? K::kSmallRegisters : threads <= 256 ? 255 : 65536 / threads;
}

// NVIDIA's assembler, told of threads alone, spills registers to make room for another block on the
// multiprocessor; told of registers, it takes them.
#if defined(SOFTKERN_EMULATED) || CUDART_VERSION < 12040
#define SK_BOUNDS(...) __launch_bounds__((most_threads<__VA_ARGS__>()))
#else
#define SK_BOUNDS(...) __maxnreg__((most_registers<__VA_ARGS__>()))
#endif

template <class T, class K>
Traits traits_of(const Target& target) {
  return {static_cast<int>(sizeof(T)), K::kFew,          K::kSome,       K::kMany, K::kMostThreads,
          K::kMostWithoutVectors,      K::kMostWithMany, target.clusters};
}

inline Sharing sharing_of(const Plan& plan) {
  const Shared kinds[] = {Shared::kLanes, Shared::kLanes, Shared::kBlock, Shared::kCluster, Shared::kColumn};
  return {kinds[static_cast<int>(plan.way)], plan.team, plan.blocks};
}

inline int rows_of_a_block(const Plan& plan) {
  switch (plan.way) {
    case Way::kTile:
      return plan.threads;
    case Way::kLanes:
      return plan.threads / plan.team;
    case Way::kColumns:
      return kWarp;
    default:
      return 1;
  }
}

template <class A>
Dims dims_of(const Plan& plan, const Shape& shape, int64_t rows, int sums, int tiles) {
  const int each = rows_of_a_block(plan);
  const size_t shared = plan.way == Way::kTile ? tile_bytes<A>(shape.classes, plan.threads, tiles)
                                               : team_bytes<A>(sharing_of(plan), plan.threads, sums);
  return {(rows + each - 1) / each * plan.blocks, plan.threads, plan.blocks, shared};
}

template <int kChunk, int kKept>
struct Kernel {
  static constexpr int V = kChunk, E = kKept;
};

/// start(Kernel<V, E>()) for the kernel that the plan names; E 0 reads again.
template <class T, class K, class F>
const char* with_kernel(const Plan& plan, F start) {
  constexpr int V = kVector<T>;
  const auto start_checked = [&](auto kernel) {
    using Chosen = decltype(kernel);
    // More registers than the multiprocessor has.
    if (plan.threads > most_threads<K, Chosen::V, Chosen::E>())
      return "a plan of more threads than the kernel takes";
    return start(kernel);
  };
  switch (plan.kept) {
    case Kept::kFew:
      return plan.vectors ? start_checked(Kernel<V, K::kFew>()) : start_checked(Kernel<1, K::kFew>());
    case Kept::kSome:
      return plan.vectors ? start_checked(Kernel<V, K::kSome>()) : start_checked(Kernel<1, K::kSome>());
    case Kept::kMany:
      if constexpr (K::kMany > 0) return start_checked(Kernel<V, K::kMany>());
      break;
    case Kept::kNone:
      break;
  }
  return plan.vectors ? start_checked(Kernel<V, 0>()) : start_checked(Kernel<1, 0>());
}

/// A thread's part of a row, kept or not.
template <class T, int V, int E, int kTensors = 1>
struct RowOf {
  using type = KeptRow<T, V, E>;
};
template <class T, int V, int kTensors>
struct RowOf<T, V, 0, kTensors> {
  using type = StreamedRow<T, V, kTensors>;
};

}  // namespace
}  // namespace softkern::cuda
