// SPDX-License-Identifier: Apache-2.0
#include "dispatch.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <atomic>
#include <stdexcept>

namespace softkern::cpu {
namespace {

// Filled in before the program starts: a table needs no code of its ISA.
template <class Isa>
constexpr KernelTable table_of(const char* isa) {
  return {isa,
          {&KernelsOf<Isa, float>::kernels, &KernelsOf<Isa, double>::kernels,
           &KernelsOf<Isa, BFloat16>::kernels, &KernelsOf<Isa, Half>::kernels}};
}

constexpr KernelTable kPortableTable = table_of<Portable>("portable");

#if defined(__x86_64__)
constexpr KernelTable kAvx2Table = table_of<Avx2>("avx2");
constexpr KernelTable kAvx512Table = table_of<Avx512>("avx512");

// __builtin_cpu_supports also asks the OS (XCR0) whether it saves the wide registers.
std::string missing_avx2() {
  if (!__builtin_cpu_supports("avx2")) return "this CPU (or its operating system) has no AVX2";
  if (!__builtin_cpu_supports("fma")) return "this CPU has no FMA";
  unsigned eax, ebx, ecx = 0, edx;
  __get_cpuid(1, &eax, &ebx, &ecx, &edx);
  if (!(ecx & bit_F16C)) return "this CPU has no F16C";  // a name that clang's builtin does not know
  return "";
}
std::string missing_avx512() {
  if (!__builtin_cpu_supports("avx512f")) return "this CPU (or its operating system) has no AVX-512";
  if (!__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512dq") ||
      !__builtin_cpu_supports("avx512vl")) {
    return "this CPU lacks one of AVX512BW, AVX512DQ, AVX512VL";
  }
  return "";
}
#endif

std::vector<Isa> find_isas() {
#if defined(__x86_64__)
  return {{"avx512", &kAvx512Table, missing_avx512()},
          {"avx2", &kAvx2Table, missing_avx2()},
          {"portable", &kPortableTable, ""}};
#else
  const std::string reason = "softkern was compiled for a CPU that is not x86-64";
  return {{"avx512", nullptr, reason}, {"avx2", nullptr, reason}, {"portable", &kPortableTable, ""}};
#endif
}

const KernelTable* best() {
  for (const Isa& isa : isas()) {
    if (isa.reason.empty()) return isa.table;
  }
  return &kPortableTable;
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
  static const std::vector<Isa> found = find_isas();
  return found;
}

const KernelTable& active() {
  if (thread_table != nullptr) return *thread_table;
  const KernelTable* table = process_table.load(std::memory_order_relaxed);
  if (table == nullptr) {
    table = best();
    const KernelTable* nothing = nullptr;
    // A choice made meanwhile by another thread stays.
    if (!process_table.compare_exchange_strong(nothing, table)) table = nothing;
  }
  return *table;
}

void choose_for_process(const std::string& name) { process_table = name.empty() ? best() : find(name); }

void choose_for_thread(const std::string& name) { thread_table = name.empty() ? nullptr : find(name); }

std::string thread_choice() { return thread_table == nullptr ? "" : thread_table->isa; }

}  // namespace softkern::cpu
