// SPDX-License-Identifier: Apache-2.0
// Runs CUDA kernels on the host, for tests: an ordinary C++ compiler compiles csrc/cuda, without a GPU or a
// toolkit. Sanitizers see every access.
//
// A thread of the GPU is a fiber that runs until it waits for others: at __syncthreads, __syncwarp, a shuffle
// or a barrier of its cluster. One block (or cluster) runs at a time. Besides wrong numbers, this finds:
// - accesses out of bounds of tensors and of shared memory (under AddressSanitizer), and misaligned accesses
//   to tensors;
// - reads of shared memory before it is written: it starts as NaNs;
// - missing barriers: of two threads without a barrier between them, each is late in one of the orders
//   (kOrders of simt_device.h), which SIMT_ORDER selects;
// - threads that wait for each other at different barriers, and lanes that have exited before a shuffle of
//   their warp;
// - kernels that begin early and don't wait for the previous one, or access tensors before;
// - accesses to shared memory of another block that may not have begun yet, or may have ended;
// - reads of what an asynchronous copy or message brings, without waiting for it, and writes to where one is
//   on its way: it arrives as early or as late as it may, depending on the order.
// It can't find races between a block and the blocks that run after it, or effects of the hardware.
#pragma once

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#include "simt_device.h"

#define __global__
#define __launch_bounds__(...)

namespace simt {

struct Dim {
  unsigned x = 1;
};

enum class Wait { kNothing, kWarp, kBlock, kCluster, kInbox, kDone };

constexpr int kWarpLanes = 32;
constexpr size_t kStackBytes = 128 << 10;

struct Block;

/// A barrier in shared memory that counts arrivals and bytes (mbarrier), in its 8 bytes.
struct Inbox {
  int32_t bytes;  // expected and not there, or there and not expected
  uint16_t mark;  // of an inbox that has been opened
  uint8_t arrivals;
  uint8_t phase;
};
static_assert(sizeof(Inbox) == 8);

/// A copy to shared memory that a thread has begun (cp.async).
struct Copy {
  char* to;
  const char* from;
  size_t bytes, valid;
};

/// A number on its way to the shared memory of another block (st.async).
struct Message {
  char* to;
  uint64_t value;
  size_t bytes;
  Inbox* inbox;
  Block* block;
};

struct Thread {
  ucontext_t context;  // start of the thread
  // Where the thread resumes. swapcontext would call the operating system for the signal mask each time,
  // which costs several times as much as the switch.
  jmp_buf place;
  bool begun = false;
  char* stack = nullptr;
  Dim index;
  Block* block = nullptr;
  Wait wait = Wait::kNothing;
  unsigned shuffles = 0;
  const Inbox* inbox = nullptr;  // for which it waits until the phase is not this one
  uint8_t phase = 0;
  std::vector<Copy> copies;
  bool waited = false;  // for the previous kernel

  bool can_go_on() const { return wait == Wait::kNothing || (wait == Wait::kInbox && inbox->phase != phase); }
};

struct Warp {
  uint64_t slots[2][kWarpLanes];
};

struct FreeMemory {
  void operator()(char* memory) const { free(memory); }
};

struct Block {
  Dim index;
  Block* cluster = nullptr;  // the first block of the cluster
  bool begun = false;        // other blocks know it after a barrier of the cluster
  bool ended = false;        // at least one of its threads has ended
  std::unique_ptr<char, FreeMemory> shared;
  std::vector<Warp> warps;
};

/// One launch: the dimensions and the body of its threads, and the error if it fails.
struct Launch {
  Dim grid, block;
  int cluster = 1;
  const Order* order = nullptr;
  bool early = false;  // it may begin before the previous kernel has ended
  std::function<void()> body;
  std::vector<Message> messages;  // on their way
  const char* error = nullptr;
};

struct Machine {
  std::vector<std::unique_ptr<Thread>> threads;
  Thread* running = nullptr;
  Launch* launch = nullptr;
  jmp_buf scheduler;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
};

inline Machine& machine() {
  static thread_local Machine m;
  return m;
}

inline Thread& self() { return *machine().running; }

__attribute__((noinline)) inline void go_on(Machine& m, Thread& t) {
  if (_setjmp(m.scheduler) != 0) return;
  if (t.begun) _longjmp(t.place, 1);
  t.begun = true;
  setcontext(&t.context);
}

__attribute__((noinline)) inline void go_back(Machine& m, Thread& t) {
  if (_setjmp(t.place) == 0) _longjmp(m.scheduler, 1);
}

inline void switch_to_thread(Machine& m, Thread& t) {
  m.running = &t;
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, t.stack, kStackBytes);
#endif
  go_on(m, t);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

inline void switch_to_scheduler(Machine& m, Thread& t, bool for_good) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(for_good ? nullptr : &fake, m.scheduler_stack, m.scheduler_stack_bytes);
#endif
  go_back(m, t);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, &m.scheduler_stack, &m.scheduler_stack_bytes);
#endif
  (void)for_good;
}

inline void wait_at(Wait where) {
  Thread& t = self();
  t.wait = where;
  switch_to_scheduler(machine(), t, where == Wait::kDone);
}

/// Ends the launch, as a failed assertion ends a kernel.
inline void fail(const char* why) {
  machine().launch->error = why;
  wait_at(Wait::kDone);
}

inline bool is_early() { return machine().launch->early && !self().waited; }

inline void enter() {
  Machine& m = machine();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &m.scheduler_stack, &m.scheduler_stack_bytes);
#endif
  m.launch->body();
  if (!self().copies.empty()) fail("a thread ended before its copies");
  if (is_early()) fail("the kernel began early and did not wait for the previous one");
  self().block->ended = true;
  wait_at(Wait::kDone);
}

inline Thread& fresh_thread(Machine& m, size_t i) {
  if (i == m.threads.size()) {
    auto t = std::make_unique<Thread>();
    void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
      fprintf(stderr, "simt: no memory for the stack of thread %zu\n", i);
      abort();
    }
    t->stack = static_cast<char*>(memory);
    m.threads.push_back(std::move(t));
  }
  Thread& t = *m.threads[i];
  getcontext(&t.context);
  t.context.uc_stack.ss_sp = t.stack;
  t.context.uc_stack.ss_size = kStackBytes;
  t.context.uc_link = nullptr;
  makecontext(&t.context, enter, 0);
  t.begun = false;
  t.wait = Wait::kNothing;
  t.shuffles = 0;
  t.copies.clear();
  t.waited = false;
  return t;
}

/// Ends the phase of an inbox where all have arrived.
inline void complete(Inbox& inbox) {
  if (inbox.arrivals > 0 || inbox.bytes != 0) return;
  inbox.arrivals = 1;
  inbox.phase ^= 1;
}

/// Releases the threads [from, to) if all of them wait at this barrier. Without `all`, threads that are done
/// are not waited for.
inline bool release(Machine& m, size_t from, size_t to, Wait barrier, bool all) {
  size_t here = 0, done = 0;
  for (size_t i = from; i < to; ++i) {
    here += m.threads[i]->wait == barrier;
    done += m.threads[i]->wait == Wait::kDone;
  }
  if (here == 0 || here + (all ? 0 : done) < to - from) return false;
  for (size_t i = from; i < to; ++i) {
    if (m.threads[i]->wait == barrier) m.threads[i]->wait = Wait::kNothing;
  }
  return true;
}

inline void deliver(Launch& launch, const Message& message) {
  if (message.block->ended) launch.error = "a message to a block that may have ended";
  memcpy(message.to, &message.value, message.bytes);
  message.inbox->bytes -= static_cast<int32_t>(message.bytes);
  complete(*message.inbox);
}

/// Runs the threads [first, first + count) until all of them are done or wait for others.
inline void run_threads(Machine& m, Launch& launch, size_t first, size_t count, bool reverse) {
  for (bool went_on = true; went_on;) {
    went_on = false;
    for (size_t k = 0; k < count; ++k) {
      Thread& t = *m.threads[first + (reverse ? count - 1 - k : k)];
      if (!t.can_go_on()) continue;
      t.wait = Wait::kNothing;
      switch_to_thread(m, t);
      went_on = true;
      if (launch.error != nullptr) return;
    }
    for (size_t w = first; w < first + count; w += kWarpLanes) {
      went_on |= release(m, w, w + kWarpLanes, Wait::kWarp, /*all=*/true);
    }
  }
}

/// Runs the threads of one block until all of them are done or wait for another block.
inline void run_block(Machine& m, Launch& launch, size_t first, const Order& order) {
  const size_t count = launch.block.x, together = order.warps ? kWarpLanes : count;
  do {
    for (size_t k = 0; k < count; k += together) {
      run_threads(m, launch, first + (order.reverse ? count - together - k : k), together, order.reverse);
      if (launch.error != nullptr) return;
    }
  } while (release(m, first, first + count, Wait::kBlock, /*all=*/false));
}

/// Runs the blocks of one cluster, from their first instruction to their last.
inline void run_cluster(Machine& m, Launch& launch, unsigned first_block, size_t shared_bytes,
                        const Order& order) {
  const size_t block_threads = launch.block.x;
  const size_t count = block_threads * static_cast<size_t>(launch.cluster);
  std::vector<Block> blocks(static_cast<size_t>(launch.cluster));
  for (size_t b = 0; b < blocks.size(); ++b) {
    blocks[b].index = {first_block + static_cast<unsigned>(b)};
    blocks[b].cluster = blocks.data();
    blocks[b].shared.reset(static_cast<char*>(aligned_alloc(16, (shared_bytes + 15) / 16 * 16)));
    if (shared_bytes > 0) memset(blocks[b].shared.get(), 0xff, shared_bytes);
    blocks[b].warps.resize(block_threads / kWarpLanes);
  }
  for (size_t i = 0; i < count; ++i) {
    Thread& t = fresh_thread(m, i);
    t.block = &blocks[i / block_threads];
    t.index = {static_cast<unsigned>(i % block_threads)};
  }
  for (;;) {
    // Each block runs as far as it can without the others, so that data from other blocks is not available by
    // luck.
    for (size_t b = 0; b < blocks.size(); ++b) {
      run_block(m, launch, (order.reverse ? blocks.size() - 1 - b : b) * block_threads, order);
      if (launch.error != nullptr) return;
    }
    if (release(m, 0, count, Wait::kCluster, /*all=*/true)) {
      for (Block& block : blocks) block.begun = true;
      continue;
    }
    const std::vector<Message> messages = std::move(launch.messages);
    launch.messages.clear();
    for (const Message& message : messages) deliver(launch, message);
    if (launch.error != nullptr) return;
    bool can_go_on = false;
    for (size_t i = 0; i < count; ++i) can_go_on |= m.threads[i]->can_go_on();
    if (can_go_on) continue;
    for (size_t i = 0; i < count; ++i) {
      if (m.threads[i]->wait != Wait::kDone)
        launch.error = "threads wait for each other at different barriers";
    }
    return;
  }
}

/// Null, or why the launch failed.
template <class... Parameters>
const char* run(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, int cluster,
                size_t shared_bytes, bool early, Parameters... arguments) {
  if (blocks == 0 || threads == 0 || threads > 1024 || threads % kWarpLanes != 0 || cluster < 1 ||
      blocks % static_cast<unsigned>(cluster) != 0 || static_cast<int>(shared_bytes) > shared_of_block()) {
    return "invalid configuration argument";
  }
  if (cluster > 1 && cluster > cluster_room()) return kNoRoom;
  const Order* order = chosen_order();
  if (order == nullptr) return "SIMT_ORDER names no order of threads";
  Machine& m = machine();
  Launch launch;
  launch.grid = {blocks};
  launch.block = {threads};
  launch.cluster = cluster;
  launch.order = order;
  launch.early = early;
  note_launch(blocks, threads, early);
  launch.body = [=] { kernel(arguments...); };
  m.launch = &launch;
  for (unsigned b = 0; b < blocks && launch.error == nullptr; b += static_cast<unsigned>(cluster)) {
    run_cluster(m, launch, b, shared_bytes, *order);
  }
  m.launch = nullptr;
  return launch.error;
}

/// The value of another lane of the warp.
template <class T>
T shuffle(T value, unsigned from) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  Thread& t = self();
  uint64_t* slots = t.block->warps[t.index.x / kWarpLanes].slots[t.shuffles++ % 2];
  memcpy(&slots[t.index.x % kWarpLanes], &value, sizeof(T));
  wait_at(Wait::kWarp);
  T other;
  memcpy(&other, &slots[from], sizeof(T));
  return other;
}

template <class T>
T shuffle_xor(T value, int offset) {
  return shuffle(value, (self().index.x % kWarpLanes) ^ static_cast<unsigned>(offset));
}

/// The place in the shared memory of another block of the cluster that corresponds to `at` in the calling
/// block's.
template <class T>
T* in_block(T* at, int block) {
  Block* own = self().block;
  if (!own->cluster[block].begun || own->cluster[block].ended) {
    fail("shared memory of a block that need not have begun yet, or may have ended");
  }
  const auto offset = reinterpret_cast<char*>(at) - own->shared.get();
  return reinterpret_cast<T*>(own->cluster[block].shared.get() + offset);
}

}  // namespace simt

#include "simt_async.h"

#define threadIdx (simt::self().index)
#define blockIdx (simt::self().block->index)
#define blockDim (simt::machine().launch->block)
#define gridDim (simt::machine().launch->grid)
