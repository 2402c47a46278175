// SPDX-License-Identifier: Apache-2.0
#include "device.h"

#if defined(SOFTKERN_EMULATED)

#include <cstdlib>
#include <cstring>

#else

#include <cuda_runtime_api.h>

#include <atomic>

#endif

#include <cstdio>

namespace softkern::cuda {

bool runs_on(const char* architectures, int major, int minor) {
  const int device = 10 * major + minor;
  while (*architectures != '\0') {
    int own_major = 0, own_minor = 0, read = 0;
    if (sscanf(architectures, "%d.%d%n", &own_major, &own_minor, &read) != 2) return false;
    architectures += read;
    const bool alone = *architectures == 'a', family = *architectures == 'f';
    architectures += alone || family;
    const bool ptx = *architectures == '+';
    while (*architectures != '\0' && *architectures++ != ';') {
    }
    const int own = 10 * own_major + own_minor;
    // Machine code runs on its own major version, from its own minor version on. PTX is compiled for later
    // architectures.
    if (alone ? device == own : (own_major == major && own_minor <= minor)) return true;
    if (ptx && !alone && !family && own <= device) return true;
  }
  return false;
}

#if defined(SOFTKERN_EMULATED)

std::string why_not(int) { return ""; }

/// SIMT_CLUSTERS=0 emulates a device without clusters, such as compute capability 8.0.
bool has_clusters(int) {
  const char* wanted = getenv("SIMT_CLUSTERS");
  return wanted == nullptr || strcmp(wanted, "0") != 0;
}

#else

namespace {

/// Reading attributes creates no context on the device, which would take hundreds of megabytes there.
cudaError_t capability(int device, int* major, int* minor) {
  cudaError_t error = cudaDeviceGetAttribute(major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(minor, cudaDevAttrComputeCapabilityMinor, device);
  if (error != cudaSuccess) cudaGetLastError();  // clears it, or a later caller would find it
  return error;
}

}  // namespace

std::string why_not(int device) {
  int major = 0, minor = 0;
  const cudaError_t error = capability(device, &major, &minor);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  if (runs_on(SOFTKERN_CUDA_ARCHITECTURES, major, minor)) return "";
  return "it has compute capability " + std::to_string(major) + "." + std::to_string(minor) +
         ", and the CUDA kernels of this build are compiled for " SOFTKERN_CUDA_ARCHITECTURES;
}

bool has_clusters(int device) {
  // Every call asks this, so the answers are kept.
  enum : signed char { kUnasked, kNo, kYes };
  constexpr int kKnown = 64;
  static std::atomic<signed char> known[kKnown];
  const bool keeps = device >= 0 && device < kKnown;
  if (keeps && known[device] != kUnasked) return known[device] == kYes;
  int major = 0, minor = 0;
  const bool has = capability(device, &major, &minor) == cudaSuccess && major >= 9;
  if (keeps) known[device] = has ? kYes : kNo;
  return has;
}

#endif

}  // namespace softkern::cuda
