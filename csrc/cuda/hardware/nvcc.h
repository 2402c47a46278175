// SPDX-License-Identifier: Apache-2.0
// The functions of NVIDIA's GPUs. A barrier orders all memory accesses of the threads that meet at it.
#pragma once

#include <cuda_runtime.h>

#include <cassert>

#include "../clusters.h"
#include "launch.h"

#if !defined(SOFTKERN_INBOX_SCOPE)
#define SOFTKERN_INBOX_SCOPE "cluster"  // "cta" builds kernels without CCTL.IVALL, to compare their speed
#endif

namespace softkern::cuda {
namespace {

/// Tells the compiler that p points to global memory. It can't know this for a pointer in a struct argument
/// of a kernel, and would look up the kind of memory at every access.
template <class T>
SK_INLINE T* in_global_memory(T* p) {
  __builtin_assume(__isGlobal(p));
  return p;
}
/// Stores four words at an address that is aligned to 16 bytes, by one instruction: the compiler divides some
/// of the stores in a loop that it has unrolled.
SK_INLINE void store_words(void* at, const uint32_t (&words)[4]) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(at)), "r"(words[0]),
               "r"(words[1]), "r"(words[2]), "r"(words[3])
               : "memory");
}
SK_INLINE char* shared_memory() {
  extern __shared__ __align__(16) char sk_shared[];
  return sk_shared;
}
SK_INLINE void sync_warp() { __syncwarp(); }
SK_INLINE void sync_block() { __syncthreads(); }
// Clusters, and memory of other blocks, exist from compute capability 9.0 on. Below, the host launches no
// clusters. Nothing that was written before the barrier is visible after it, except for opened inboxes: it is
// relaxed, since a barrier that releases makes every thread wait for all of its accesses to memory.
SK_INLINE void meet_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed;\n\tbarrier.cluster.wait;" ::: "memory");
#endif
}
/// Waits until the previous kernel of the stream has ended and its results are in memory. For kernels that
/// begin early; for others, it does nothing.
SK_INLINE void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/// Lets the next kernel of the stream begin as soon as all blocks of this one have called this.
SK_INLINE void let_next_kernel_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
template <class A>
SK_INLINE A shuffle_xor(A value, int offset) {
  return __shfl_xor_sync(0xffffffffu, value, offset);
}
/// The value of lane `from`.
SK_INLINE uint32_t shuffle(uint32_t value, int from) { return __shfl_sync(0xffffffffu, value, from); }
SK_INLINE uint32_t shared_address(const void* at) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}
/// The address of `at` in the shared memory of another block of the cluster.
SK_INLINE uint32_t address_in_block(const void* at, int block) {
  uint32_t there = shared_address(at);
#if __CUDA_ARCH__ >= 900
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(there), "r"(block));
#endif
  return there;
}
/// Makes the thread's accesses to memory so far come before those that other blocks of the cluster begin
/// after its next message.
SK_INLINE void publish_to_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.acq_rel.cluster;" ::: "memory");
#endif
}
/// An inbox is a barrier in shared memory (mbarrier) that counts the bytes of messages from the blocks of the
/// cluster. Each of its phases has one arrival, which says how many bytes it expects. Unlike a barrier of the
/// cluster, it makes no thread wait until all its accesses to global memory are done.
SK_INLINE void open_inbox(uint64_t* inbox) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(inbox)) : "memory");
#endif
}
/// Shows opened inboxes to the blocks that pass the cluster's next barrier.
SK_INLINE void show_inboxes() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
SK_INLINE void expect_bytes(uint64_t* inbox, int bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(inbox)),
               "r"(bytes)
               : "memory");
#endif
}
/// Sends a number to the place that corresponds to `at` in another block, and its size to that block's inbox.
template <class A>
SK_INLINE void send_to_block(A* at, uint64_t* inbox, int block, A value) {
#if __CUDA_ARCH__ >= 900
  const uint32_t there = address_in_block(at, block), its_inbox = address_in_block(inbox, block);
  if constexpr (sizeof(A) == 4) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(there),
                 "r"(bits_as<uint32_t>(value)), "r"(its_inbox)
                 : "memory");
  } else {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];" ::"r"(there),
                 "l"(bits_as<uint64_t>(value)), "r"(its_inbox)
                 : "memory");
  }
#endif
}
/// Waits for the end of the inbox's phase with this parity.
SK_INLINE void wait_for_phase(uint64_t* inbox, int parity) {
#if __CUDA_ARCH__ >= 900
  uint32_t ended = 0;
  do {
    asm volatile(
        "{\n\t.reg .pred p;\n\t"
        "mbarrier.try_wait.parity.acquire." SOFTKERN_INBOX_SCOPE
        ".shared::cta.b64 p, [%1], %2;\n\t"
        "selp.u32 %0, 1, 0, p;\n\t}"
        : "=r"(ended)
        : "r"(shared_address(inbox)), "r"(parity)
        : "memory");
  } while (ended == 0);
#endif
}
/// Begins to copy kBytes (4, 8 or 16) from global to shared memory, both aligned to kBytes. The bytes after
/// the first `valid` ones are not read and become 0.
template <int kBytes>
SK_INLINE void begin_copy(char* to, const void* from, int valid) {
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(__cvta_generic_to_global(from)), "r"(valid)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)),
                 "l"(__cvta_generic_to_global(from)), "n"(kBytes), "r"(valid)
                 : "memory");
  }
}
/// Waits for the copies that this thread has begun. Others see them after a barrier.
SK_INLINE void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }
/// The 32 bits from the given one on, of two words; `high` from 32 on.
SK_INLINE uint32_t shift_pair(uint32_t low, uint32_t high, int bits) {
  return __funnelshift_rc(low, high, static_cast<unsigned>(bits));
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

/// How many clusters, or blocks without clusters, run at a time.
inline int at_a_time(const void* kernel, const cudaLaunchConfig_t& config, const Dims& dims,
                     const DeviceStream& stream) {
  const ClusterLaunch launch{stream.device, stream.handle, kernel, dims.cluster, dims.threads, dims.shared};
  return known_clusters().at_a_time(launch, [&] {
    int found = 0, multiprocessors = 0;
    cudaError_t error = cudaSuccess;
    // Without these permissions, launches with so much shared memory or so large clusters fail.
    if (dims.shared > (48 << 10)) {
      error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(dims.shared));
    }
    // Or else the driver may leave so much to the first-level cache that fewer blocks have room.
    if (error == cudaSuccess && dims.stays) {
      error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                   cudaSharedmemCarveoutMaxShared);
    }
    if (error == cudaSuccess && dims.cluster > 8) {
      error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    }
    if (error == cudaSuccess && dims.cluster > 1) {
      error = cudaOccupancyMaxActiveClusters(&found, kernel, &config);
    } else if (error == cudaSuccess) {
      error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&found, kernel, dims.threads, dims.shared);
      if (error == cudaSuccess) {
        error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, stream.device);
      }
      found *= multiprocessors;
    }
    if (error == cudaSuccess) return found;
    cudaGetLastError();  // clears it, or a later caller would find it
    return kUnknown;
  });
}

/// Null, or why the launch failed.
template <class... P>
const char* start(void (*kernel)(P...), const Dims& dims, const DeviceStream& stream, P... arguments) {
  const void* entry = reinterpret_cast<const void*>(kernel);
  const bool clusters = dims.cluster > 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(dims.cluster));
  config.blockDim = dim3(static_cast<unsigned>(dims.threads));
  config.dynamicSmemBytes = dims.shared;
  config.stream = static_cast<cudaStream_t>(stream.handle);
  cudaLaunchAttribute attributes[2] = {};
  config.attrs = attributes;
  if (clusters) {
    cudaLaunchAttribute& cluster = attributes[config.numAttrs++];
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = static_cast<unsigned>(dims.cluster);
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  }
  const int room = clusters || dims.stays ? at_a_time(entry, config, dims, stream) : kUnknown;
  if (clusters && room == 0) return kNoRoom;
  const int64_t blocks = blocks_of(dims, room);
  if (blocks > kMostBlocksOfGrid) return "too many rows for one launch";
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  if (stream.begins_early()) {
    cudaLaunchAttribute& early = attributes[config.numAttrs++];
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
  }
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
