// SPDX-License-Identifier: Apache-2.0
// What threads that share a row lose by waiting for each other. On an idle machine that is a few
// microseconds; beside another busy process a thread may not run for the length of a scheduler's turn, some
// milliseconds, in which one thread alone would have computed the row a hundred times.
#pragma once

#include <atomic>
#include <cstdint>

namespace softkern::cpu {

/// The waiting of one call. Where it is longer than the limit and than half of the call, rows are not shared
/// for kRest times as long afterwards, in the whole process: that bounds what is lost to a twentieth of the
/// time.
class Patience {
 public:
  Patience();
  /// Until `done` is at least `wanted`.
  void wait_for(const std::atomic<int64_t>& done, int64_t wanted);
  /// The calling thread has nothing left to do; all threads have come and gone.
  void leave();
  void joined() const;

  static bool rests();
  /// Takes back a rest. Of 50 microseconds by default; infinity for tests, which want to see rows shared.
  static void set_limit(double seconds);

 private:
  static constexpr int64_t kRest = 20;
  int64_t begun_, left_ = 0;  // nanoseconds
  std::atomic<int64_t> waited_{0};
};

}  // namespace softkern::cpu
