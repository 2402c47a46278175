// SPDX-License-Identifier: Apache-2.0
// Measures how long threads that share a row wait for each other. On an idle machine this is a few
// microseconds. Next to another busy process, a thread may be suspended for a time slice of the scheduler.
// This takes some milliseconds, in which one thread alone would have computed the row a hundred times.
#pragma once

#include <atomic>
#include <cstdint>

namespace softkern::cpu {

/// The waiting time of one call. If it exceeds the limit and half of the call, no rows are shared for kRest
/// times as long afterwards, in the whole process. This bounds the loss to a twentieth of the time.
class Patience {
 public:
  Patience();
  /// Waits until `done` is at least `wanted`.
  void wait_for(const std::atomic<int64_t>& done, int64_t wanted);
  /// leave(): the calling thread has no work left. joined(): all threads have finished.
  void leave();
  void joined() const;

  static bool rests();
  /// Sets the limit, by default 50 microseconds, and ends a rest. Tests set infinity, so that rows are always
  /// shared.
  static void set_limit(double seconds);

 private:
  static constexpr int64_t kRest = 20;
  int64_t begun_, left_ = 0;  // nanoseconds
  std::atomic<int64_t> waited_{0};
};

}  // namespace softkern::cpu
