// SPDX-License-Identifier: Apache-2.0
// Runs kernels on torch's threads, and allocates memory for their results.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>

#include "../../cpu/dispatch.h"
#include "../../cpu/memory.h"
#include "../ran.h"
#include "../rows.h"
#include "patience.h"

namespace softkern::cpu {

using at::Tensor;

// The least number of elements per thread: about 10 us of work, as in ATen. For fewer, a further thread costs
// more than it saves.
constexpr int64_t kGrain = 32768;

/// Fresh contiguous memory for a result of the shape and dtype of x.
inline Tensor new_output(const Tensor& x) {
  Tensor result = at::empty(x.sizes(), x.options().memory_format(at::MemoryFormat::Contiguous));
  advise_huge_pages(result.data_ptr(), result.nbytes());
  return result;
}

/// What a call's threads report.
struct Report {
  std::atomic<const char*> isa{""};
  std::atomic<const char*> path{""};
  std::atomic<bool> out_of_memory{false};
  void set(const Ran& ran) {
    isa.store(ran.isa, std::memory_order_relaxed);
    path.store(ran.path, std::memory_order_relaxed);
  }
};

/// The number of chunks into which a row is split. It is 1 if there are enough rows for all threads, if a row
/// has too few classes, or if threads have recently arrived too late (Patience::rests).
inline int chunks_of_a_row(const Layout& layout) {
  const int64_t most = layout.shape.classes / kGrain;
  uint32_t threads = 1;
  if (most < 2 || torch_get_num_threads(&threads) != 0 || layout.rows >= static_cast<int64_t>(threads) ||
      Patience::rests()) {
    return 1;
  }
  return static_cast<int>(std::min<int64_t>(most, threads));
}

/// Computes the rows one after the other, each with all threads. Each thread takes the next chunk when it is
/// ready, and a thread that arrives late finds none left. Neither the number of chunks nor which thread
/// computes which chunk changes any bits.
template <class Args>
bool run_shared(const Kernel<Args>& kernel, const Args& args, const Layout& layout, int chunks,
                Report& report) {
  const int64_t classes = layout.shape.classes;
  const int64_t blocks = (classes + kChunkClasses - 1) / kChunkClasses;
  const int64_t length = (blocks + chunks - 1) / chunks * kChunkClasses;
  const int count = static_cast<int>((classes + length - 1) / length);
  const std::unique_ptr<char[]> shared(new (std::nothrow) char[kernel.shared_bytes(args, count)]);
  if (shared == nullptr) {
    report.out_of_memory = true;
    return false;
  }
  struct Call {
    const Kernel<Args>& kernel;
    const Args& args;
    int64_t classes, length;
    int count;
    int64_t all;  // chunks of all steps of all rows
    void* shared;
    Report& report;
    std::atomic<int64_t> taken{0}, done{0};
    Patience patience;
  } call{kernel, args, classes, length, count, layout.rows * kernel.steps * count, shared.get(), report};
  const auto on_thread = [](int64_t begin, int64_t, void* context) {
    Call& c = *static_cast<Call*>(context);
    for (int64_t i; (i = c.taken.fetch_add(1, std::memory_order_relaxed)) < c.all;) {
      const int64_t turn = i / c.count, row = turn / c.kernel.steps;  // a step of a row
      const int index = static_cast<int>(i % c.count), step = static_cast<int>(turn % c.kernel.steps);
      c.patience.wait_for(c.done, turn * c.count);
      const int64_t stop = std::min(c.classes, (index + 1) * c.length);
      const Chunk chunk{row, index * c.length, stop, index, c.count, c.shared};
      c.report.set(c.kernel.chunk(c.args, chunk, step));
      c.done.fetch_add(1, std::memory_order_release);
    }
    if (begin == 0) c.patience.leave();  // the calling thread
  };
  const bool failed = torch_parallel_for(0, chunks, 1, on_thread, &call) != 0;
  call.patience.joined();
  return !failed;
}

/// Runs the kernel over ranges of rows. Splitting by rows does not change any bits.
template <class Args>
bool run_rows(const Kernel<Args>& kernel, const Args& args, const Layout& layout, Report& report) {
  struct Call {
    const Kernel<Args>& kernel;
    const Args& args;
    Report& report;
  } call{kernel, args, report};
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, layout.shape.classes));
  const auto on_thread = [](int64_t begin, int64_t end, void* context) {
    Call& c = *static_cast<Call*>(context);
    const size_t bytes = c.kernel.scratch_bytes(c.args, end - begin);
    const std::unique_ptr<char[]> scratch(bytes > 0 ? new (std::nothrow) char[bytes] : nullptr);
    if (bytes > 0 && scratch == nullptr) {
      c.report.out_of_memory = true;  // an exception must not cross the C interface
      return;
    }
    c.report.set(c.kernel.rows(c.args, {begin, end, scratch.get()}));
  };
  return torch_parallel_for(0, layout.rows, grain, on_thread, &call) == 0;
}

/// Runs a kernel over all rows, in torch's own thread pool.
/// It uses torch_parallel_for, not at::parallel_for, which is a template in a header. In a file compiled
/// without OpenMP, the template runs on one thread. In a file compiled with OpenMP, it runs on the compiler's
/// own OpenMP runtime, in addition to torch's.
template <class Args>
void run(const Kernel<Args>& kernel, const Args& args, const Layout& layout) {
  Report report;
  const int chunks = kernel.chunk == nullptr ? 1 : chunks_of_a_row(layout);
  const bool shared = chunks > 1 && kernel.shared_bytes(args, chunks) > 0;
  const bool done =
      shared ? run_shared(kernel, args, layout, chunks, report) : run_rows(kernel, args, layout, report);
  TORCH_CHECK(done && !report.out_of_memory, "softkern: not enough memory for rows of ", layout.shape.classes,
              " classes");
  set_last_ran({report.isa.load(std::memory_order_relaxed), report.path.load(std::memory_order_relaxed)});
}

}  // namespace softkern::cpu
