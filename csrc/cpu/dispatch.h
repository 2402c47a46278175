// SPDX-License-Identifier: Apache-2.0
// Which ISA runs: the best that the CPU has, or the one that was asked for.
#pragma once

#include <string>
#include <vector>

#include "api.h"

namespace softkern::cpu {

struct Isa {
  const char* name;
  const KernelTable* table;  // null: not compiled into this build
  std::string reason;        // why it can't run here; empty if it can
};

/// Best first.
const std::vector<Isa>& isas();

/// The table for the calling thread.
const KernelTable& active();

/// Choice of the process / of the calling thread; an empty name takes it back. A thread's choice wins.
/// std::invalid_argument for a name that is not in isas(), std::runtime_error for one that can't run.
void choose_for_process(const std::string& name);
void choose_for_thread(const std::string& name);
std::string thread_choice();

}  // namespace softkern::cpu
