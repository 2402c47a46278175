// SPDX-License-Identifier: Apache-2.0
// Turns a plan into a launch.
#pragma once

#if !defined(SOFTKERN_ELEMENT)
#error \
    "compile each op's .cu once for each type of elements: with -DSOFTKERN_ELEMENT=float, double, \
softkern::BFloat16 and softkern::Half, as tools/cuda_build.py does"
#endif

#include "columns.cuh"
#include "shared_spans.cuh"

namespace softkern::cuda {
namespace {

/// The limits of a kind of kernel: how many elements of each tensor a thread keeps, and how many threads a
/// block has at most. The more threads, the fewer registers each of them has. 16-bit elements arrive twice as
/// fast, so more threads have to share the work that a thread does once per row.
template <class T>
struct OneTensor {
  static constexpr int kFew = kVector<T> > 4 ? kVector<T> : 4;
  static constexpr int kSome = 64 / sizeof(T), kMany = 2 * kSome;
  static constexpr int kMostThreads = sizeof(T) == 8 ? 512 : 1024;
  static constexpr int kMostWithElements = 512, kMostWithMany = kMostThreads,
                       kMostSpansWithMany = kMostThreads;
  static constexpr int kSmallRegisters = sizeof(T) == 8 ? 128 : 64;
  static constexpr bool kSpans = true, kManyFirst = sizeof(T) < 8, kManyInClusters = false;
  static constexpr int kSharedTensors = 1, kSharedFrom = cuda::kSharedFrom,
                       kSpansSharedFrom = cuda::kSharedFrom;
  // The most numbers that the kernel's threads add up at once.
  static constexpr int kSums = 2;
};
template <class T>
struct TwoTensors : OneTensor<T> {
  static constexpr int kSome = sizeof(T) == 8 ? 8 : 16, kMany = sizeof(T) == 2 ? 32 : 0;
  static constexpr bool kManyFirst = false, kManyInClusters = true;
  // Up to 131,072 classes of 2 or 4 bytes, clusters keep both rows in registers at the speed of a copy.
  static constexpr int kSharedTensors = 2, kSharedFrom = sizeof(T) == 8
                                                             ? cuda::kSharedFrom
                                                             : (128 << 10) * static_cast<int>(sizeof(T));
  static constexpr int kSums = 1;
};

template <class K, Access kAccess, int E>
constexpr int most_threads() {
  return E > 0 && E <= K::kFew          ? kSmallBlock
         : kAccess == Access::kElements ? K::kMostWithElements
         : E <= K::kSome                ? K::kMostThreads
         : kAccess == Access::kSpans    ? K::kMostSpansWithMany
                                        : K::kMostWithMany;
}
/// The registers of a thread in such blocks, at most 255. A multiprocessor has four parts with 16,384
/// registers each. Each part runs a fourth of the block's warps, rounded up, and gives registers to threads
/// in units of 8.
template <class K, Access kAccess, int E>
constexpr int most_registers() {
  constexpr int threads = most_threads<K, kAccess, E>();
  constexpr int warps_of_a_part = (threads + 4 * kWarp - 1) / (4 * kWarp);
  return threads == kSmallBlock ? K::kSmallRegisters
         : threads <= 256       ? 255
                                : 16384 / (warps_of_a_part * kWarp) / 8 * 8;
}

// If NVIDIA's assembler is given the number of threads only, it spills registers to make room for another
// block on the multiprocessor. If it is given the number of registers, it uses them.
#if defined(SOFTKERN_EMULATED) || CUDART_VERSION < 12040
#define SK_BOUNDS(...) __launch_bounds__((most_threads<__VA_ARGS__>()))
#else
#define SK_BOUNDS(...) __maxnreg__((most_registers<__VA_ARGS__>()))
#endif

#if defined(SOFTKERN_EMULATED) || CUDART_VERSION < 12040
#define SK_SHARED_BOUNDS(T) __launch_bounds__(threads_of_shared(sizeof(T)))
#else
#define SK_SHARED_BOUNDS(T) __maxnreg__(65536 / threads_of_shared(sizeof(T)) / 8 * 8)
#endif

template <class T, class K>
Traits traits_of(const DeviceStream& stream) {
  return {static_cast<int>(sizeof(T)),
          K::kFew,
          K::kSome,
          K::kMany,
          K::kMostThreads,
          K::kMostWithElements,
          K::kMostWithMany,
          K::kMostSpansWithMany,
          K::kSpans,
          K::kManyFirst,
          K::kManyInClusters,
          K::kSharedTensors,
          K::kSharedFrom,
          K::kSpansSharedFrom,
          K::kSums,
          static_cast<int>(sizeof(Compute<T>)),
          stream};
}

/// Calls launch(stream), and again with smaller clusters, or without any, if the device has no room for them.
template <class F>
Outcome with_clusters_that_fit(const DeviceStream& stream, F launch) {
  DeviceStream on = stream;
  for (;;) {
    const Outcome outcome = launch(on);
    if (outcome.error != kNoRoom || on.most_blocks == 1) return outcome;
    on.most_blocks /= 2;
  }
}

inline TeamShape team_shape_of(const Plan& plan, int sums) {
  const TeamKind in_blocks = plan.blocks > 1 ? TeamKind::kCluster : TeamKind::kBlock;
  const TeamKind kinds[] = {TeamKind::kLanes,  TeamKind::kLanes, in_blocks,        in_blocks,
                            TeamKind::kColumn, in_blocks,        TeamKind::kColumn};
  return {kinds[static_cast<int>(plan.way)], plan.team, plan.blocks, sums};
}

/// A plan of rows, and what its launch takes. The dims of Way::kTile are with_tile()'s.
struct Launch {
  Plan plan;
  Dims dims;
  Grid grid;
};

/// K: the limits of the kernel. `operands` and `weights`: see make_plan().
template <class T, class K>
Launch launch_of(const Shape& shape, int64_t rows, const DeviceStream& stream,
                 std::initializer_list<const Rows*> operands, const void* weights = nullptr) {
  const Plan plan = make_plan(shape, traits_of<T, K>(stream), operands, weights);
  const TeamShape team = team_shape_of(plan, K::kSums);
  const bool in_shared = plan.way == Way::kShared || plan.way == Way::kSharedColumns;
  const size_t bytes = in_shared
                           ? static_cast<size_t>(plan.shared.offset + K::kSharedTensors * plan.shared.bytes)
                           : team_bytes<Compute<T>>(team, plan.threads);
  const int64_t blocks = ceil_div(rows, plan.threads / plan.team) * plan.blocks;
  return {plan, {blocks, plan.threads, plan.blocks, bytes, in_shared}, {rows, shape, team, plan.shared}};
}

/// Calls start(Access) for the kernel with rows in shared memory that the plan names.
template <class F>
const char* with_access(const Plan& plan, F start) {
  if (plan.access == Access::kVectors) return start(std::integral_constant<Access, Access::kVectors>());
  return start(std::integral_constant<Access, Access::kSpans>());
}

template <Access kOfAccess, int kKept>
struct Kernel {
  static constexpr Access kAccess = kOfAccess;
  static constexpr int E = kKept;
};

/// Calls start(Kernel<kAccess, E>()) for the kernel that the plan names. Kernels with E = 0 read the row
/// again.
template <class T, class K, class F>
const char* with_kernel(const Plan& plan, F start) {
  const auto start_checked = [&](auto kernel) {
    using Chosen = decltype(kernel);
    // Such a block would need more registers than the multiprocessor has.
    if (plan.threads > most_threads<K, Chosen::kAccess, Chosen::E>())
      return "a plan of more threads than the kernel takes";
    return start(kernel);
  };
  const auto start_that_keeps = [&](auto kept) {
    constexpr int E = decltype(kept)::value;
    if (plan.access == Access::kVectors) return start_checked(Kernel<Access::kVectors, E>());
    if constexpr (K::kSpans && E > 0) {
      if (plan.access == Access::kSpans) return start_checked(Kernel<Access::kSpans, E>());
    }
    return start_checked(Kernel<Access::kElements, E>());
  };
  switch (plan.kept) {
    case Kept::kFew:
      return start_checked(Kernel<Access::kElements, K::kFew>());
    case Kept::kSome:
      return start_that_keeps(std::integral_constant<int, K::kSome>());
    case Kept::kMany:
      if constexpr (K::kMany > 0) {
        if constexpr (K::kSpans) {
          if (plan.access == Access::kSpans) return start_checked(Kernel<Access::kSpans, K::kMany>());
        }
        return start_checked(Kernel<Access::kVectors, K::kMany>());
      }
      break;
    case Kept::kNone:
      break;
  }
  return start_that_keeps(std::integral_constant<int, 0>());
}

template <class K, class T, int E>
using TeamOf = Team<Compute<T>, E == 0 || E != K::kMany ? Kinds::kAll : Kinds::kBlocks>;

/// The type of a thread's part of a row, kept in registers or read again.
template <class T, Access kAccess, int E, int kTensors = 1>
struct RowOf {
  using type = KeptRow<T, kAccess, E>;
};
template <class T, int E, int kTensors>
struct RowOf<T, Access::kSpans, E, kTensors> {
  using type = SpannedRow<T, E>;
};
template <class T, Access kAccess, int kTensors>
struct RowOf<T, kAccess, 0, kTensors> {
  using type = StreamedRow<T, kAccess, kTensors>;
};

/// The type of a row in shared memory.
template <class T, Access kAccess>
using SharedRow = std::conditional_t<kAccess == Access::kVectors, SharedVectors<T>, SharedSpans<T>>;

}  // namespace
}  // namespace softkern::cuda
