// SPDX-License-Identifier: Apache-2.0
// How many clusters of a kernel's blocks, or blocks without clusters, a device runs at a time. It may have no
// room for any cluster: with MPS, in a green context or in a slice of a GPU, a process may have few
// multiprocessors. The blocks of a cluster have to run at the same time on neighbouring multiprocessors.
#pragma once

#include <cstddef>
#include <map>
#include <mutex>
#include <tuple>

namespace softkern::cuda {

/// The properties of a launch that decide this. A stream of a green context can use only the multiprocessors
/// of that context.
struct ClusterLaunch {
  int device;
  void* stream;
  const void* kernel;
  int blocks;  // per cluster, or 1
  int threads;
  size_t shared;

  bool operator<(const ClusterLaunch& other) const { return all() < other.all(); }

 private:
  std::tuple<int, void*, const void*, int, int, size_t> all() const {
    return {device, stream, kernel, blocks, threads, shared};
  }
};

/// Of a launch about which CUDA can't be asked now.
constexpr int kUnknown = -1;

/// The answers so far, shared by all threads.
class KnownClusters {
 public:
  /// ask() returns how many run at a time, or kUnknown. In that case the next call asks again.
  template <class Ask>
  int at_a_time(const ClusterLaunch& launch, Ask ask) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto known = known_.find(launch);
      if (known != known_.end()) return known->second;
    }
    // ask() runs without the lock: the first query about a kernel loads it, and other threads need not wait
    // for this.
    const int found = ask();
    if (found == kUnknown) return found;
    const std::lock_guard<std::mutex> lock(mutex_);
    // Streams are created and destroyed, so without a limit the map would grow.
    if (known_.size() >= kMost) known_.clear();
    known_[launch] = found;
    return found;
  }

 private:
  static constexpr size_t kMost = 4096;
  std::mutex mutex_;
  std::map<ClusterLaunch, int> known_;
};

/// The answers of the process. Never destroyed, since threads may still launch while the process ends.
inline KnownClusters& known_clusters() {
  static KnownClusters& known = *new KnownClusters;
  return known;
}

}  // namespace softkern::cuda
