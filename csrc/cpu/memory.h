// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

namespace softkern::cpu {

/// Whether a result of so many bytes is written past the caches, which saves reading its memory first: if it
/// and what it is made of would not stay there anyway. A smaller one is worth more in the cache, to whoever
/// reads it next.
inline bool streams(size_t bytes) { return bytes >= (8 << 20); }

/// Ask the system for huge pages behind fresh memory, before its first write: touching a new page of 4 KiB
/// costs more than computing what goes into it. Does nothing to small blocks, to pages that are there
/// already, where the system has no such thing, and with SOFTKERN_HUGE_PAGES=0 in the environment.
void advise_huge_pages(void* data, size_t bytes);

/// Whether the environment allows it.
bool huge_pages_wanted();

}  // namespace softkern::cpu
