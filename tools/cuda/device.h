// SPDX-License-Identifier: Apache-2.0
// Memory and time of a device, for programs that call the kernels without torch. Compiled with
// -DSOFTKERN_EMULATED, the host takes the device's place.
#pragma once

#if !defined(SOFTKERN_EMULATED)
#include <cuda_runtime.h>
#endif

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "../../csrc/cuda/device.h"

namespace softkern::tools {

[[noreturn]] inline void give_up(const char* why) {
  fprintf(stderr, "%s\n", why);
  exit(4);
}

#if defined(SOFTKERN_EMULATED)

inline void* new_memory(size_t bytes) { return aligned_alloc(256, (bytes + 256) / 256 * 256); }
inline void delete_memory(void* at) { free(at); }
inline void copy_to_device(void* to, const void* from, size_t bytes) { memcpy(to, from, bytes); }
inline void copy_to_host(void* to, const void* from, size_t bytes) { memcpy(to, from, bytes); }
inline void copy_on_device(void* to, const void* from, size_t bytes) { memcpy(to, from, bytes); }
inline void clear(void* at, size_t bytes) { memset(at, 0, bytes); }
inline void synchronize() {}
inline std::string device_name() { return "emulated"; }
inline int runtime_version() { return 0; }
inline size_t cache_bytes() { return 1 << 20; }
inline size_t free_memory() { return size_t{1} << 30; }

/// Microseconds of a call.
class Timer {
 public:
  template <class F>
  float operator()(F call) {
    const auto begun = std::chrono::steady_clock::now();
    call();
    return std::chrono::duration<float, std::micro>(std::chrono::steady_clock::now() - begun).count();
  }
};

#else

inline void check(cudaError_t error) {
  if (error != cudaSuccess) give_up(cudaGetErrorString(error));
}
inline void* new_memory(size_t bytes) {
  void* at = nullptr;
  check(cudaMalloc(&at, bytes > 0 ? bytes : 1));
  return at;
}
inline void delete_memory(void* at) { cudaFree(at); }
inline void copy_to_device(void* to, const void* from, size_t bytes) {
  check(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice));
}
inline void copy_to_host(void* to, const void* from, size_t bytes) {
  check(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost));
}
inline void copy_on_device(void* to, const void* from, size_t bytes) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice));
}
inline void clear(void* at, size_t bytes) { check(cudaMemsetAsync(at, 0, bytes)); }
inline void synchronize() { check(cudaDeviceSynchronize()); }
inline cudaDeviceProp properties() {
  cudaDeviceProp found;
  check(cudaGetDeviceProperties(&found, 0));
  return found;
}
inline std::string device_name() { return properties().name; }
inline int runtime_version() { return CUDART_VERSION; }
inline size_t cache_bytes() { return static_cast<size_t>(properties().l2CacheSize); }
inline size_t free_memory() {
  size_t there = 0, all = 0;
  check(cudaMemGetInfo(&there, &all));
  return there;
}

/// Microseconds of a call, by events on the device.
class Timer {
 public:
  Timer() {
    check(cudaEventCreate(&begin_));
    check(cudaEventCreate(&end_));
  }
  ~Timer() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;
  template <class F>
  float operator()(F call) {
    check(cudaEventRecord(begin_));
    call();
    check(cudaEventRecord(end_));
    check(cudaEventSynchronize(end_));
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin_, end_));
    return 1000 * milliseconds;
  }

 private:
  cudaEvent_t begin_, end_;
};

#endif

/// Memory of the device, exactly as large as asked for: a checker of accesses sees every one beyond it.
class Memory {
 public:
  Memory() = default;
  explicit Memory(size_t bytes) : at_(new_memory(bytes)), bytes_(bytes) {}
  ~Memory() { release(); }
  Memory(Memory&& other) noexcept : at_(other.at_), bytes_(other.bytes_) { other.at_ = nullptr; }
  Memory& operator=(Memory&& other) noexcept {
    std::swap(at_, other.at_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }

  void* at() const { return at_; }
  size_t bytes() const { return bytes_; }
  void send(const void* from) { copy_to_device(at_, from, bytes_); }
  void receive(void* to) const { copy_to_host(to, at_, bytes_); }

 private:
  void release() {
    if (at_ != nullptr) delete_memory(at_);
  }
  void* at_ = nullptr;
  size_t bytes_ = 0;
};

/// The default stream of the first device.
inline cuda::DeviceStream device_stream() { return cuda::on_device(0, nullptr); }

/// Seconds since the program began.
inline double seconds() {
  static const auto begun = std::chrono::steady_clock::now();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
}

}  // namespace softkern::tools
