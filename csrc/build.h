// SPDX-License-Identifier: Apache-2.0
// How this library was compiled.
#pragma once

namespace softkern {

struct Build {
  const char* compiler;
  long cxx_standard;
  const char* torch;
  const char* version;
  const char* cuda_architectures;  // "": no CUDA kernels
  bool cuda_emulated;
};

constexpr Build kBuild{
#if defined(__clang__)
    "clang " __clang_version__,
#else
    "gcc " __VERSION__,
#endif
    __cplusplus,
    SOFTKERN_TORCH_VERSION,
    SOFTKERN_VERSION,
#ifdef SOFTKERN_WITH_CUDA
    SOFTKERN_CUDA_ARCHITECTURES,
#else
    "",
#endif
#ifdef SOFTKERN_EMULATED
    true,
#else
    false,
#endif
};

}  // namespace softkern
