// SPDX-License-Identifier: Apache-2.0
// The list of instruction sets, and the reasons why a CPU can't run one.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "api.h"

/// X(trait, name, compiled, missing), best first for each kind of CPU; the last one runs everywhere.
///   trait      names its kernels, KernelsOf<trait, T>, which isa/<name>.cpp exports
///   name       for users
///   compiled   whether this build has it
///   missing()  why this CPU can't run it; "" if it can
#define SOFTKERN_ISAS(X)                                \
  X(Avx512, avx512, SOFTKERN_IS_X86_64, missing_avx512) \
  X(Avx2, avx2, SOFTKERN_IS_X86_64, missing_avx2)       \
  X(Neon, neon, SOFTKERN_IS_AARCH64, missing_neon)      \
  X(Portable, portable, true, missing_nothing)

namespace softkern::cpu {

inline const char* missing_nothing() { return ""; }

#if defined(__x86_64__)
#define SOFTKERN_IS_X86_64 true

// __builtin_cpu_supports also asks the OS (XCR0) whether it saves the wide registers.
inline const char* missing_avx2() {
  if (!__builtin_cpu_supports("avx2")) return "this CPU (or its operating system) has no AVX2";
  if (!__builtin_cpu_supports("fma")) return "this CPU has no FMA";
  unsigned eax, ebx, ecx = 0, edx;
  __get_cpuid(1, &eax, &ebx, &ecx, &edx);
  if (!(ecx & bit_F16C)) return "this CPU has no F16C";  // a name that clang's builtin does not know
  return "";
}
inline const char* missing_avx512() {
  if (!__builtin_cpu_supports("avx512f")) return "this CPU (or its operating system) has no AVX-512";
  if (!__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512dq") ||
      !__builtin_cpu_supports("avx512vl")) {
    return "this CPU lacks one of AVX512BW, AVX512DQ, AVX512VL";
  }
  return "";
}
#else
#define SOFTKERN_IS_X86_64 false

inline const char* missing_x86_64() { return "softkern was compiled for a CPU that is not x86-64"; }
inline const char* missing_avx2() { return missing_x86_64(); }
inline const char* missing_avx512() { return missing_x86_64(); }
#endif

#if defined(__aarch64__)
#define SOFTKERN_IS_AARCH64 true

inline const char* missing_neon() { return missing_nothing(); }  // every such CPU has it
#else
#define SOFTKERN_IS_AARCH64 false

inline const char* missing_neon() { return "softkern was compiled for a CPU that is not 64-bit ARM"; }
#endif

#define SOFTKERN_DECLARE_KERNELS(Trait, name, compiled, missing) \
  struct Trait;                                                  \
  template <>                                                    \
  const Kernels KernelsOf<Trait, float>::kernels;                \
  template <>                                                    \
  const Kernels KernelsOf<Trait, double>::kernels;               \
  template <>                                                    \
  const Kernels KernelsOf<Trait, BFloat16>::kernels;             \
  template <>                                                    \
  const Kernels KernelsOf<Trait, Half>::kernels;
SOFTKERN_ISAS(SOFTKERN_DECLARE_KERNELS)
#undef SOFTKERN_DECLARE_KERNELS

}  // namespace softkern::cpu
