// SPDX-License-Identifier: Apache-2.0
// The device that the emulator plays, and the order in which it runs threads: chosen by environment
// variables.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace simt {

/// Which threads run first. A block, or with `warps` each warp, runs as far as it can before the next one
/// begins. If the threads of a block take turns at every shuffle, they stay in step. Then an early store of
/// one thread and a late store of another end the same way in both directions. With `warps`, the last store
/// of one warp comes before the first store of the next one.
///
/// `late`: copies and messages (simt_async.h) arrive when their thread or block can't go on without them;
/// otherwise at once.
struct Order {
  const char* name;
  bool warps, reverse, late;
};
constexpr Order kOrders[] = {{"forward", false, false, false},
                             {"reverse", false, true, true},
                             {"warps", true, false, true},
                             {"warps-reverse", true, true, false}};

/// The order that SIMT_ORDER names, by default the first one. Null if no order has this name.
inline const Order* chosen_order() {
  const char* name = getenv("SIMT_ORDER");
  if (name == nullptr) return &kOrders[0];
  for (const Order& order : kOrders) {
    if (strcmp(name, order.name) == 0) return &order;
  }
  return nullptr;
}

inline int number_from(const char* variable, int otherwise) {
  const char* value = getenv(variable);
  return value != nullptr ? atoi(value) : otherwise;
}
/// Blocks of the largest cluster that the device has room for: SIMT_CLUSTER_ROOM. 1 means no clusters.
inline int cluster_room() { return number_from("SIMT_CLUSTER_ROOM", 16); }
/// Blocks of the largest cluster that the device claims to have room for: SIMT_CLUSTER_PROMISE, by default
/// the true number.
inline int promised_cluster_room() { return number_from("SIMT_CLUSTER_PROMISE", cluster_room()); }
/// The error of a launch with a larger cluster.
inline constexpr char kNoRoom[] = "no room for a cluster of so many blocks";
/// Clusters, or blocks without clusters, that run at a time: SIMT_AT_A_TIME. Kernels that take further rows
/// have that many of them; the emulator itself runs one after another.
inline int at_a_time() { return number_from("SIMT_AT_A_TIME", 1); }
/// Bytes of shared memory that a block may have and that a multiprocessor has: those of compute capability
/// 9.0, or one more KiB than SIMT_SHARED_KIB for the latter.
inline int shared_of_block() { return number_from("SIMT_SHARED_KIB", 227) << 10; }
inline int shared_of_multiprocessor() { return shared_of_block() + (1 << 10); }

/// For tests: a line for each launch, in the file that SIMT_LAUNCHES names.
inline void note_launch(unsigned blocks, unsigned threads, bool early) {
  const char* name = getenv("SIMT_LAUNCHES");
  FILE* file = name != nullptr ? fopen(name, "a") : nullptr;
  if (file == nullptr) return;
  fprintf(file, "%u blocks of %u%s\n", blocks, threads, early ? ", early" : "");
  fclose(file);
}

}  // namespace simt
