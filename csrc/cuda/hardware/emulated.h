// SPDX-License-Identifier: Apache-2.0
// The emulator's version of nvcc.h: the same names in the same order. nvcc.h documents them.
#pragma once

#include <cmath>

#include "../../cpu/scalar.h"
#include "launch.h"
#include "simt.h"

namespace softkern::cuda {
namespace {

template <class T>
SK_INLINE T* in_global_memory(T* p) {
  if (reinterpret_cast<uintptr_t>(p) % alignof(T) != 0) simt::fail("misaligned address");
  if (simt::is_early()) simt::fail("an access to memory before the previous kernel has ended");
  return p;
}
SK_INLINE void store_words(void* at, const uint32_t (&words)[4]) {
  if (reinterpret_cast<uintptr_t>(at) % sizeof(words) != 0) simt::fail("misaligned address");
  memcpy(at, words, sizeof(words));
}
SK_INLINE char* shared_memory() { return simt::self().block->shared.get(); }
SK_INLINE void sync_warp() { simt::wait_at(simt::Wait::kWarp); }
SK_INLINE void sync_block() { simt::wait_at(simt::Wait::kBlock); }
SK_INLINE void meet_cluster() { simt::wait_at(simt::Wait::kCluster); }
SK_INLINE void wait_for_previous_kernel() { simt::self().waited = true; }
SK_INLINE void let_next_kernel_begin() {}
template <class A>
SK_INLINE A shuffle_xor(A value, int offset) {
  return simt::shuffle_xor(value, offset);
}
SK_INLINE uint32_t shuffle(uint32_t value, int from) {
  return simt::shuffle(value, static_cast<unsigned>(from));
}
SK_INLINE void publish_to_cluster() {}
SK_INLINE void open_inbox(uint64_t* inbox) { simt::open_inbox(inbox); }
SK_INLINE void show_inboxes() {}
SK_INLINE void expect_bytes(uint64_t* inbox, int bytes) { simt::expect_bytes(inbox, bytes); }
template <class A>
SK_INLINE void send_to_block(A* at, uint64_t* inbox, int block, A value) {
  simt::send_to_block(at, inbox, block, value);
}
SK_INLINE void wait_for_phase(uint64_t* inbox, int parity) { simt::wait_for_phase(inbox, parity); }
template <int kBytes>
SK_INLINE void begin_copy(char* to, const void* from, int valid) {
  simt::begin_copy(to, from, kBytes, static_cast<size_t>(valid));
}
SK_INLINE void wait_for_copies() { simt::wait_for_copies(); }
SK_INLINE uint32_t shift_pair(uint32_t low, uint32_t high, int bits) {
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> bits);
}
/// `power` is a power of two.
SK_INLINE int log2_of(int power) { return 31 - __builtin_clz(static_cast<unsigned>(power)); }
template <class I>
SK_INLINE void forget(I&) {}
SK_INLINE float fused(float a, float b, float c) { return fmaf(a, b, c); }
SK_INLINE double fused(double a, double b, double c) { return fma(a, b, c); }
SK_INLINE float rough_inverse(float b) { return 1 / b; }
SK_INLINE float rough_exp2(float x) {
  const float result = exp2f(x);
  return result < 0x1p-126f ? 0 : result;
}
SK_INLINE float larger(float a, float b) { return fmaxf(a, b); }
SK_INLINE double larger(double a, double b) { return fmax(a, b); }
SK_INLINE float at_least(float x, float least) { return x < least ? least : x; }
SK_INLINE void stop_unless(bool holds, const char* why) {
  if (!holds) simt::fail(why);
}

SK_INLINE float widen(float x) { return x; }
SK_INLINE double widen(double x) { return x; }
SK_INLINE float widen(BFloat16 x) { return cpu::widen(x); }
SK_INLINE float widen(Half x) { return cpu::widen(x); }
template <class T>
SK_INLINE T narrow(Compute<T> x) {
  return cpu::Narrow<T>::from(x);
}
template <class T>
SK_INLINE uint32_t narrow_pair(float low, float high) {
  return narrow<T>(low).bits | static_cast<uint32_t>(narrow<T>(high).bits) << 16;
}
template <class T>
SK_INLINE uint32_t larger_pair(uint32_t a, uint32_t b) {
  const auto half = [](uint32_t word, int bits) { return widen(T{static_cast<uint16_t>(word >> bits)}); };
  return narrow_pair<T>(larger(half(a, 0), half(b, 0)), larger(half(a, 16), half(b, 16)));
}

template <class... P>
const char* start(void (*kernel)(P...), const Dims& dims, const DeviceStream& stream, P... arguments) {
  if (dims.cluster > 1 && dims.cluster > simt::promised_cluster_room()) return kNoRoom;
  const int64_t blocks = blocks_of(dims, simt::at_a_time());
  if (blocks > kMostBlocksOfGrid) return "too many rows for one launch";
  const char* error =
      simt::run<P...>(kernel, static_cast<unsigned>(blocks), static_cast<unsigned>(dims.threads),
                      dims.cluster, dims.shared, stream.begins_early(), arguments...);
  return error == simt::kNoRoom ? kNoRoom : error;
}

}  // namespace
}  // namespace softkern::cuda
