// SPDX-License-Identifier: Apache-2.0
// The functions of NVIDIA's GPUs. A barrier orders all memory accesses of the threads that meet at it.
#pragma once

#include <cuda_runtime.h>

#include <cassert>

#include "../clusters.h"
#include "launch.h"

namespace softkern::cuda {
namespace {

/// Tells the compiler that p points to global memory. It can't know this for a pointer in a struct argument
/// of a kernel, and would look up the kind of memory at every access.
template <class T>
SK_INLINE T* in_global_memory(T* p) {
  __builtin_assume(__isGlobal(p));
  return p;
}
SK_INLINE char* shared_memory() {
  extern __shared__ __align__(16) char sk_shared[];
  return sk_shared;
}
SK_INLINE void sync_warp() { __syncwarp(); }
SK_INLINE void sync_block() { __syncthreads(); }
// Clusters, and memory of other blocks, exist from compute capability 9.0 on. Below, the host launches no
// clusters. The barrier releases and acquires, which is its default: after it, a block may overwrite what
// another block has read before it.
SK_INLINE void sync_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive;\n\tbarrier.cluster.wait;" ::: "memory");
#endif
}
template <class A>
SK_INLINE A shuffle_xor(A value, int offset) {
  return __shfl_xor_sync(0xffffffffu, value, offset);
}
/// The value of lane `from`.
SK_INLINE uint32_t shuffle(uint32_t value, int from) { return __shfl_sync(0xffffffffu, value, from); }
/// The address of `at` in the shared memory of another block of the cluster, for store_in_block().
SK_INLINE uint32_t address_in_block(const void* at, int block) {
  uint32_t there = static_cast<uint32_t>(__cvta_generic_to_shared(at));
#if __CUDA_ARCH__ >= 900
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(there), "r"(block));
#endif
  return there;
}
SK_INLINE void store_in_block(float* at, int block, float value) {
  const uint32_t there = address_in_block(at, block);
#if __CUDA_ARCH__ >= 900
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(there), "f"(value) : "memory");
#endif
}
SK_INLINE void store_in_block(double* at, int block, double value) {
  const uint32_t there = address_in_block(at, block);
#if __CUDA_ARCH__ >= 900
  asm volatile("st.shared::cluster.f64 [%0], %1;" ::"r"(there), "d"(value) : "memory");
#endif
}
/// `power` is a power of two.
SK_INLINE int log2_of(int power) { return 31 - __clz(power); }
/// The compiler forgets the values computed from the word, and computes them again instead of keeping them in
/// registers.
SK_INLINE void forget(uint32_t& word) { asm volatile("" : "+r"(word)); }
SK_INLINE void forget(int& word) { asm volatile("" : "+r"(word)); }
SK_INLINE void forget(int64_t& word) { asm volatile("" : "+l"(word)); }
SK_INLINE float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
SK_INLINE double fused(double a, double b, double c) { return __fma_rn(a, b, c); }
/// 1 / b within 1 ulp for b between 2^-126 and 2^126.
SK_INLINE float rough_inverse(float b) {
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(b));
  return inverse;
}
/// 2^x with a relative error of at most 2^-22. Results below 2^-126 become 0; to keep them would take four
/// instructions.
SK_INLINE float rough_exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
/// The larger one of a and b. If one is NaN, the other one.
SK_INLINE float larger(float a, float b) { return fmaxf(a, b); }
SK_INLINE double larger(double a, double b) { return fmax(a, b); }
/// The larger one of x and `least`; NaN if x is NaN.
SK_INLINE float at_least(float x, float least) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(x), "f"(least));
  return result;
}
/// Stops the device as torch's kernels do: it prints the place, and every later call on the device fails.
SK_INLINE void stop_unless(bool holds, const char* why) {
  if (!holds) __assert_fail(why, "softkern", 0, "cross_entropy");
}

/// An element, converted to the compute type.
SK_INLINE float widen(float x) { return x; }
SK_INLINE double widen(double x) { return x; }
SK_INLINE float widen(BFloat16 x) { return bits_as<float>(static_cast<uint32_t>(x.bits) << 16); }
SK_INLINE float widen(Half x) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x.bits));
  return result;
}
/// Rounds to nearest, ties to even.
template <class T>
SK_INLINE T narrow(Compute<T> x) {
  return x;
}
template <>
SK_INLINE BFloat16 narrow<BFloat16>(float x) {
  BFloat16 result;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
  return result;
}
template <>
SK_INLINE Half narrow<Half>(float x) {
  Half result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
  return result;
}
/// Two elements in a word, the first in its low half.
template <class T>
SK_INLINE uint32_t narrow_pair(float low, float high);
template <>
SK_INLINE uint32_t narrow_pair<BFloat16>(float low, float high) {
  uint32_t result;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
}
template <>
SK_INLINE uint32_t narrow_pair<Half>(float low, float high) {
  uint32_t result;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
}
/// The larger elements of two such pairs. If one of two elements is NaN, the other one.
template <class T>
SK_INLINE uint32_t larger_pair(uint32_t a, uint32_t b);
template <>
SK_INLINE uint32_t larger_pair<BFloat16>(uint32_t a, uint32_t b) {
  uint32_t result;
  asm("max.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}
template <>
SK_INLINE uint32_t larger_pair<Half>(uint32_t a, uint32_t b) {
  uint32_t result;
  asm("max.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}

inline bool clusters_fit(const void* kernel, const cudaLaunchConfig_t& config, const Dims& dims,
                         const DeviceStream& stream) {
  const ClusterLaunch launch{stream.device, stream.handle, kernel, dims.cluster, dims.threads, dims.shared};
  return known_clusters().fit(launch, [&] {
    int at_a_time = 0;
    if (cudaOccupancyMaxActiveClusters(&at_a_time, kernel, &config) == cudaSuccess) return at_a_time;
    cudaGetLastError();  // clears it, or a later caller would find it
    return -1;
  });
}

/// Null, or why the launch failed.
template <class... P>
const char* start(void (*kernel)(P...), const Dims& dims, const DeviceStream& stream, P... arguments) {
  if (dims.blocks > kMostBlocksOfGrid) return "too many rows for one launch";
  const void* entry = reinterpret_cast<const void*>(kernel);
  const bool clusters = dims.cluster > 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(dims.blocks));
  config.blockDim = dim3(static_cast<unsigned>(dims.threads));
  config.dynamicSmemBytes = dims.shared;
  config.stream = static_cast<cudaStream_t>(stream.handle);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = static_cast<unsigned>(dims.cluster);
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  config.attrs = &cluster;
  config.numAttrs = clusters ? 1 : 0;
  if (clusters && !clusters_fit(entry, config, dims, stream)) return kNoRoom;
  void* pointers[] = {&arguments...};
  const cudaError_t error = cudaLaunchKernelExC(&config, entry, pointers);
  if (error == cudaSuccess) return nullptr;
  if (!clusters) return cudaGetErrorString(error);
  // CUDA does not guarantee that clusters fit if its query says so, and does not document the error of a
  // launch that doesn't fit. Any other error occurs again in the launch without clusters.
  cudaGetLastError();
  return kNoRoom;
}

}  // namespace
}  // namespace softkern::cuda
