// SPDX-License-Identifier: Apache-2.0
// Chooses the ISA: the best one that the CPU has, or the one that the user chose.
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

/// Set the choice of the process or of the calling thread; an empty name removes it. The choice of a thread
/// has priority. They throw std::invalid_argument for a name that is not in isas(), and std::runtime_error
/// for an ISA that can't run.
void choose_for_process(const std::string& name);
void choose_for_thread(const std::string& name);
std::string thread_choice();

}  // namespace softkern::cpu
