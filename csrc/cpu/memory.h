// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

namespace softkern::cpu {

/// Whether a result of this many bytes is written past the caches, which saves reading its memory first. This
/// pays if the result and its operands would not stay in the caches anyway. A smaller result is more useful
/// in the cache, for the op that reads it next.
inline bool streams(size_t bytes) { return bytes >= (8 << 20); }

/// Asks the system for huge pages for fresh memory, before its first write: the first access to a page of 4
/// KiB costs more than computing its contents. Does nothing for small blocks, for pages that already exist,
/// on systems without this feature, and with SOFTKERN_HUGE_PAGES=0 in the environment.
void advise_huge_pages(void* data, size_t bytes);

/// Whether the environment allows huge pages.
bool huge_pages_wanted();

}  // namespace softkern::cpu
