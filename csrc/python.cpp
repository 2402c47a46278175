// SPDX-License-Identifier: Apache-2.0
// What Python calls directly: the ops (a dispatcher call without torch.ops' Python layer), the choice of the
// backend, and what this build is.
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include <mutex>
#include <string>
#include <unordered_set>

#include "cpu/dispatch.h"
#include "cpu/memory.h"
#include "ops/backend.h"
#include "ops/checks.h"
#include "ops/ops.h"

namespace py = pybind11;

namespace {

at::Tensor cross_entropy(const at::Tensor& input, const at::Tensor& target,
                         const std::optional<at::Tensor>& weight, int64_t reduction, int64_t ignore_index,
                         double label_smoothing, bool inplace_backward) {
  if (inplace_backward) {
    return softkern::cross_entropy_(input, target, weight, reduction, ignore_index, label_smoothing);
  }
  return softkern::cross_entropy(input, target, weight, reduction, ignore_index, label_smoothing);
}

bool takes_cross_entropy(const at::Tensor& input, const at::Tensor& target,
                         const std::optional<at::Tensor>& weight, int64_t reduction, c10::SymInt ignore_index,
                         double label_smoothing) {
  return softkern::takes_cross_entropy(input, target, weight, reduction, ignore_index, label_smoothing);
}

py::list isas() {
  py::list result;
  for (const softkern::cpu::Isa& isa : softkern::cpu::isas()) {
    result.append(py::make_tuple(isa.name, isa.table != nullptr, isa.reason));
  }
  return result;
}

/// Kernels name themselves by literals; names that come from Python are kept as long.
const char* kept(const std::string& name) {
  static std::mutex mutex;
  static auto& names = *new std::unordered_set<std::string>;
  const std::lock_guard<std::mutex> lock(mutex);
  return names.insert(name).first->c_str();
}

void set_triton_probe(py::function probe) {
  // Never let go: the process may end in a thread that has no interpreter any more.
  const py::handle held = probe.release();
  softkern::set_triton_probe([held](const std::string& device_type) {
    const py::gil_scoped_acquire gil;
    return held(device_type).cast<bool>();
  });
}

py::dict build() {
  py::dict result;
#if defined(__clang__)
  result["compiler"] = "clang " __clang_version__;
#else
  result["compiler"] = "gcc " __VERSION__;
#endif
  result["cxx_standard"] = static_cast<long>(__cplusplus);
  result["torch"] = SOFTKERN_TORCH_VERSION;
  result["version"] = SOFTKERN_VERSION;
#ifdef SOFTKERN_WITH_CUDA
  result["cuda_architectures"] = SOFTKERN_CUDA_ARCHITECTURES;
#else
  result["cuda_architectures"] = "";
#endif
#ifdef SOFTKERN_EMULATED
  result["cuda_emulated"] = true;
#else
  result["cuda_emulated"] = false;
#endif
  return result;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("softmax", torch::wrap_pybind_function_no_gil(softkern::softmax));
  m.def("log_softmax", torch::wrap_pybind_function_no_gil(softkern::log_softmax));
  m.def("cross_entropy", torch::wrap_pybind_function_no_gil(cross_entropy));
  m.def("takes_cross_entropy", torch::wrap_pybind_function_no_gil(takes_cross_entropy));
  m.def("isas", &isas);
  m.def("active_isa", [] { return softkern::cpu::active().isa; });
  m.def("last_isa", [] { return softkern::cpu::last().isa; });
  m.def("last_path", [] { return softkern::cpu::last().path; });
  m.def("set_last", [](const std::string& isa, const std::string& path) {
    softkern::cpu::set_last({kept(isa), kept(path)});
  });
  m.def("why_no_cuda", &softkern::why_no_cuda, py::call_guard<py::gil_scoped_release>());
  m.def("set_triton_probe", &set_triton_probe);
  m.def("choose_for_process", &softkern::choose_for_process);
  m.def("choose_for_thread", &softkern::choose_for_thread);
  m.def("required", &softkern::required);
  m.def("huge_pages_wanted", &softkern::cpu::huge_pages_wanted);
  m.def("thread_choice", &softkern::thread_choice);
  m.def("build", &build);
}
