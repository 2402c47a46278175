// SPDX-License-Identifier: Apache-2.0
#include "memory.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace softkern::cpu {

bool huge_pages_wanted() {
  static const bool wanted = [] {
    const char* value = std::getenv("SOFTKERN_HUGE_PAGES");
    return value == nullptr || std::strcmp(value, "0") != 0;
  }();
  return wanted;
}

void advise_huge_pages(void* data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHuge = 2 << 20;
  // Memory of twice the size of a huge page contains at least one whole huge page. The limit is higher, so
  // that the call is worth its time.
  if (bytes < 4 * kHuge || !huge_pages_wanted()) return;
  // Only whole huge pages: the first and the last page may hold other data too.
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHuge - 1) / kHuge * kHuge;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kHuge * kHuge;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice: an error changes nothing
#endif
}

}  // namespace softkern::cpu
