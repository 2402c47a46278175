// SPDX-License-Identifier: Apache-2.0
#include "dispatch.h"

#include <atomic>
#include <stdexcept>

#include "isas.h"

namespace softkern::cpu {
namespace {

/// The table contains no code of its instruction set, so every CPU can make it.
template <class Trait, bool kCompiled>
Isa isa_of(const char* name, const char* reason) {
  if constexpr (kCompiled) {
    static const KernelTable table{name,
                                   {&KernelsOf<Trait, float>::kernels, &KernelsOf<Trait, double>::kernels,
                                    &KernelsOf<Trait, BFloat16>::kernels, &KernelsOf<Trait, Half>::kernels}};
    return {name, &table, reason};
  } else {
    return {name, nullptr, reason};
  }
}

const KernelTable* best() {
  for (const Isa& isa : isas()) {
    if (isa.reason.empty()) return isa.table;
  }
  return nullptr;  // not reached: the last of them runs everywhere
}

const KernelTable* find(const std::string& name) {
  std::string choices;
  for (const Isa& isa : isas()) {
    if (name == isa.name) {
      if (!isa.reason.empty())
        throw std::runtime_error("backend '" + name + "' can't run here: " + isa.reason);
      return isa.table;
    }
    choices += (choices.empty() ? "'" : ", '") + std::string(isa.name) + "'";
  }
  throw std::invalid_argument("unknown backend '" + name + "': expected one of " + choices);
}

std::atomic<const KernelTable*> process_table{nullptr};
thread_local const KernelTable* thread_table = nullptr;

}  // namespace

const std::vector<Isa>& isas() {
#define SOFTKERN_ISA_OF(Trait, name, compiled, missing) isa_of<Trait, compiled>(#name, missing()),
  static const std::vector<Isa> found = {SOFTKERN_ISAS(SOFTKERN_ISA_OF)};
#undef SOFTKERN_ISA_OF
  return found;
}

const KernelTable& active() {
  if (thread_table != nullptr) return *thread_table;
  const KernelTable* table = process_table.load(std::memory_order_relaxed);
  if (table == nullptr) {
    table = best();
    const KernelTable* nothing = nullptr;
    // A choice that another thread made in the meantime has priority.
    if (!process_table.compare_exchange_strong(nothing, table)) table = nothing;
  }
  return *table;
}

void choose_for_process(const std::string& name) { process_table = name.empty() ? best() : find(name); }

void choose_for_thread(const std::string& name) { thread_table = name.empty() ? nullptr : find(name); }

std::string thread_choice() { return thread_table == nullptr ? "" : thread_table->isa; }

}  // namespace softkern::cpu
