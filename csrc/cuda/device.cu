// SPDX-License-Identifier: Apache-2.0
#include "device.h"

#include "target.h"

namespace softkern::cuda {

#if defined(SOFTKERN_EMULATED)

const char* why_not(int) { return nullptr; }

/// SIMT_CLUSTERS=0: as on compute capability 8.0.
bool has_clusters(int) {
  const char* wanted = getenv("SIMT_CLUSTERS");
  return wanted == nullptr || strcmp(wanted, "0") != 0;
}

#else

namespace {

// One kernel is compiled for what all are compiled for.
__global__ void probe_kernel() {}

/// On the device, the calling thread's choice of a device as it was afterwards.
template <class F>
cudaError_t on_device(int device, F f) {
  int before = 0;
  cudaError_t error = cudaGetDevice(&before);
  if (error == cudaSuccess) error = cudaSetDevice(device);
  if (error == cudaSuccess) {
    error = f();
    cudaSetDevice(before);
  }
  // Asking must not leave an error behind for the next who looks for one.
  cudaGetLastError();
  return error;
}

}  // namespace

const char* why_not(int device) {
  const cudaError_t error = on_device(device, [] {
    cudaFuncAttributes attributes;
    return cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(probe_kernel));
  });
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

bool has_clusters(int device) {
  int major = 0;
  return cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         major >= 9;
}

#endif

}  // namespace softkern::cuda
