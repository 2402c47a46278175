// SPDX-License-Identifier: Apache-2.0
#include "backend.h"

#include <atomic>
#include <limits>

#include "../cpu/dispatch.h"
#ifdef SOFTKERN_WITH_CUDA
#include "../cuda/device.h"
#endif

namespace softkern {
namespace {

constexpr const char* kCudaName = "cuda";
constexpr const char* kTritonName = "triton";

// kNone: no backend is chosen by name. kCpu: an ISA is.
std::atomic<Backend> process_named{Backend::kNone};
thread_local Backend thread_named = Backend::kNone;

Backend named() {
  return thread_named != Backend::kNone ? thread_named : process_named.load(std::memory_order_relaxed);
}

bool is_named_or_free(Backend backend) { return named() == backend || named() == Backend::kNone; }

Backend backend_of(const std::string& name) {
  if (name.empty()) return Backend::kNone;
  if (name == kCudaName) return Backend::kCuda;
  if (name == kTritonName) return Backend::kTriton;
  return Backend::kCpu;
}

enum class Answer { kUnasked, kNo, kYes };

/// Returns the kept answer. The first call gets it from `ask`.
template <class Ask>
bool ask_once(std::atomic<Answer>& answer, const Ask& ask) {
  Answer known = answer.load(std::memory_order_acquire);
  if (known == Answer::kUnasked) {
    known = ask() ? Answer::kYes : Answer::kNo;
    answer.store(known, std::memory_order_release);
  }
  return known == Answer::kYes;
}

std::function<bool(const std::string&)>& triton_probe() {
  // Never destroyed: a thread may ask while the process ends.
  static auto& probe = *new std::function<bool(const std::string&)>;
  return probe;
}

std::atomic<Answer> triton_answers[c10::COMPILE_TIME_MAX_DEVICE_TYPES];

bool triton_computes_on(c10::Device device) {
  return ask_once(triton_answers[static_cast<int>(device.type())], [&] {
    try {
      const auto& probe = triton_probe();
      return probe && probe(c10::DeviceTypeName(device.type(), /*lower_case=*/true));
    } catch (...) {
      if (named() == Backend::kTriton) throw;
      return false;
    }
  });
}

#ifdef SOFTKERN_EMULATED
bool cuda_computes_on(c10::Device device) { return device.is_cpu(); }
#else
// Devices of one process may differ in architecture.
std::atomic<Answer> cuda_answers[std::numeric_limits<c10::DeviceIndex>::max() + 1];

bool cuda_computes_on(c10::Device device) {
  if (!device.is_cuda()) return false;
  const int index = device.has_index() ? device.index() : 0;
  return ask_once(cuda_answers[index], [&] { return why_no_cuda(index).empty(); });
}
#endif

}  // namespace

void choose_for_process(const std::string& name, bool required) {
  const Backend backend = backend_of(name);
  if (backend == Backend::kCuda || backend == Backend::kTriton) {
    process_named = backend;
  } else {
    cpu::choose_for_process(name);
    process_named = required ? backend : Backend::kNone;
  }
}

void choose_for_thread(const std::string& name) {
  const Backend backend = backend_of(name);
  cpu::choose_for_thread(backend == Backend::kCpu ? name : "");
  thread_named = backend;
}

std::string thread_choice() { return thread_named == Backend::kNone ? "" : required(); }

std::string required() {
  switch (named()) {
    case Backend::kCpu:
      return cpu::active().isa;
    case Backend::kCuda:
      return kCudaName;
    case Backend::kTriton:
      return kTritonName;
    default:
      return "";
  }
}

Backend backend_for(c10::Device device) {
  switch (device.type()) {
    case c10::DeviceType::CPU:
      // On the CPU, CUDA is emulated and Triton interpreted. Both are slow and meant for tests, so they must
      // be chosen by name.
      if (named() == Backend::kCuda) return cuda_computes_on(device) ? Backend::kCuda : Backend::kNone;
      if (named() == Backend::kTriton) return triton_computes_on(device) ? Backend::kTriton : Backend::kNone;
      return Backend::kCpu;
    case c10::DeviceType::CUDA:
    case c10::DeviceType::XPU:
      if (is_named_or_free(Backend::kCuda) && cuda_computes_on(device)) return Backend::kCuda;
      if (is_named_or_free(Backend::kTriton) && triton_computes_on(device)) return Backend::kTriton;
      return Backend::kNone;
    default:
      return Backend::kNone;
  }
}

void raise_no_backend(c10::Device device) {
  const std::string named = required();
  TORCH_CHECK(!named.empty(), "no backend of softkern computes tensors on ", device,
              " here: softkern.backends() says why");
  TORCH_CHECK(false, "backend '", named, "' was asked for and does not compute tensors on ", device);
}

std::string why_no_cuda([[maybe_unused]] int device) {
#if defined(SOFTKERN_EMULATED)
  return "this build emulates the CUDA kernels, for tests, on the CPU alone";
#elif defined(SOFTKERN_WITH_CUDA)
  return cuda::why_not(device);
#else
  return "this build has no CUDA kernels: softkern was built where torch saw no GPU, without nvcc, for ROCm "
         "or with "
         "SOFTKERN_CUDA=0; built with FORCE_CUDA=1 it has them wherever there is an nvcc";
#endif
}

void set_triton_probe(std::function<bool(const std::string&)> probe) {
  triton_probe() = std::move(probe);
  for (std::atomic<Answer>& answer : triton_answers) answer = Answer::kUnasked;
}

}  // namespace softkern
