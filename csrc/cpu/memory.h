// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

namespace softkern::cpu {

/// Ask the system for huge pages behind fresh memory, before its first write: touching a new page of 4 KiB
/// costs more than computing what goes into it. Does nothing to small blocks, to pages that are there
/// already, where the system has no such thing, and with SOFTKERN_HUGE_PAGES=0 in the environment.
void advise_huge_pages(void* data, size_t bytes);

/// Whether the environment allows it.
bool huge_pages_wanted();

}  // namespace softkern::cpu
