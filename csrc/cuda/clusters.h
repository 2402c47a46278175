// SPDX-License-Identifier: Apache-2.0
// Whether a device has room for a cluster of a kernel's blocks. Not each one does: a process may have few of
// the multiprocessors, by MPS, in a green context or in a slice of a GPU, and the blocks of a cluster have to
// run at the same time on multiprocessors next to each other.
#pragma once

#include <cstddef>
#include <map>
#include <mutex>
#include <tuple>

namespace softkern::cuda {

/// What decides it. Streams of a green context have its multiprocessors alone.
struct ClusterLaunch {
  int device;
  void* stream;
  const void* kernel;
  int blocks;  // of a cluster
  int threads;
  size_t shared;

  bool operator<(const ClusterLaunch& other) const { return all() < other.all(); }

 private:
  std::tuple<int, void*, const void*, int, int, size_t> all() const {
    return {device, stream, kernel, blocks, threads, shared};
  }
};

/// The answers so far, for all threads.
class KnownClusters {
 public:
  /// ask(): how many clusters run at a time, or less than 0 if that can't be known now. Then they are
  /// launched, and the next call asks again.
  template <class Ask>
  bool fit(const ClusterLaunch& launch, Ask ask) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto known = known_.find(launch);
      if (known != known_.end()) return known->second;
    }
    // Others need not wait: the first question about a kernel loads it.
    const int at_a_time = ask();
    if (at_a_time < 0) return true;
    const std::lock_guard<std::mutex> lock(mutex_);
    // Streams come and go.
    if (known_.size() >= kMost) known_.clear();
    known_[launch] = at_a_time > 0;
    return at_a_time > 0;
  }

 private:
  static constexpr size_t kMost = 4096;
  std::mutex mutex_;
  std::map<ClusterLaunch, bool> known_;
};

/// Those of the process; never destroyed, since threads may still launch while it ends.
inline KnownClusters& known_clusters() {
  static KnownClusters& known = *new KnownClusters;
  return known;
}

}  // namespace softkern::cuda
