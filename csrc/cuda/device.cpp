// SPDX-License-Identifier: Apache-2.0
#include "device.h"

#if defined(SOFTKERN_EMULATED)
#include "hardware/simt_device.h"
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
DeviceStream on_device(int device, void* stream) {
  DeviceStream found{stream, device};
  found.most_blocks = simt::number_from("SIMT_CLUSTERS", 1) != 0 ? 16 : 1;
  found.overlaps = found.most_blocks > 1;
  found.shared_of_block = simt::shared_of_block();
  found.shared_of_multiprocessor = simt::shared_of_multiprocessor();
  return found;
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

namespace {

/// What is asked of a device once, since every call needs it.
struct Properties {
  std::atomic<bool> known{false};
  std::atomic<bool> overlaps{false};
  std::atomic<int> most_blocks{1}, shared_of_block{0}, shared_of_multiprocessor{0};
};

/// The attribute, or `otherwise` if it can't be read.
int attribute(cudaDeviceAttr which, int device, int otherwise) {
  int value = 0;
  if (cudaDeviceGetAttribute(&value, which, device) == cudaSuccess) return value;
  cudaGetLastError();
  return otherwise;
}

/// Whether the driver captures launches that overlap in a graph.
bool captures_early_kernels() {
  constexpr int kCaptured = 12030;
  int version = 0;
  return CUDART_VERSION >= kCaptured && cudaDriverGetVersion(&version) == cudaSuccess && version >= kCaptured;
}

void ask(int device, Properties& answer) {
  int major = 0, minor = 0;
  // More than 8 blocks are not portable: known_clusters() asks whether they fit.
  const bool clusters = capability(device, &major, &minor) == cudaSuccess && major >= 9;
  const int shared = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device, 48 << 10);
  answer.most_blocks = clusters ? 16 : 1;
  answer.overlaps = clusters && captures_early_kernels();
  answer.shared_of_block = shared;
  answer.shared_of_multiprocessor = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device, shared);
  answer.known = true;
}

}  // namespace

DeviceStream on_device(int device, void* stream) {
  constexpr int kKept = 64;
  static Properties of_devices[kKept];
  Properties unkept;
  Properties& found = device >= 0 && device < kKept ? of_devices[device] : unkept;
  // Threads that ask at the same time get the same answers.
  if (!found.known) ask(device, found);
  DeviceStream result{stream, device, found.most_blocks, found.shared_of_block,
                      found.shared_of_multiprocessor};
  result.overlaps = found.overlaps;
  return result;
}

#endif

}  // namespace softkern::cuda
