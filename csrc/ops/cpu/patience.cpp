// SPDX-License-Identifier: Apache-2.0
#include "patience.h"

#include <chrono>
#include <limits>
#include <thread>

namespace softkern::cpu {
namespace {

std::atomic<int64_t> limit{50'000};
std::atomic<int64_t> rest_until{0};

int64_t now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

Patience::Patience() : begun_(now()) {}

void Patience::wait_for(const std::atomic<int64_t>& done, int64_t wanted) {
  constexpr int kPauses = 256;  // a few microseconds, the usual delay of a thread on another core
  for (int i = 0; i < kPauses; ++i) {
    if (done.load(std::memory_order_acquire) >= wanted) return;
    pause_briefly();
  }
  const int64_t begun = now();
  while (done.load(std::memory_order_acquire) < wanted) std::this_thread::yield();
  waited_.fetch_add(now() - begun, std::memory_order_relaxed);
}

void Patience::leave() { left_ = now(); }

void Patience::joined() const {
  const int64_t end = now();
  const int64_t waited = end - left_ + waited_.load(std::memory_order_relaxed);
  if (waited > limit.load(std::memory_order_relaxed) && waited > (end - begun_) / 2) {
    rest_until.store(end + kRest * waited, std::memory_order_relaxed);
  }
}

bool Patience::rests() {
  const int64_t until = rest_until.load(std::memory_order_relaxed);
  return until != 0 && now() < until;
}

void Patience::set_limit(double seconds) {
  constexpr auto kMost = std::numeric_limits<int64_t>::max();
  limit = seconds < 1e9 ? static_cast<int64_t>(seconds * 1e9) : kMost;
  rest_until = 0;
}

}  // namespace softkern::cpu
