// SPDX-License-Identifier: Apache-2.0
// The functions that Python calls directly: the ops (a call of the dispatcher without the Python layer of
// torch.ops), the choice of the backend, and the properties of this build.
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include <string>

#include "behind.h"
#include "build.h"
#include "cpu/dispatch.h"
#include "cpu/memory.h"
#include "entry.h"
#include "ops/backend.h"
#include "ops/cpu/patience.h"
#include "ops/ran.h"

namespace py = pybind11;

namespace {

py::list op_names() {
  py::list result;
  softkern::for_each_op([&](const auto& op) { result.append(op.kName); });
  return result;
}

py::list isas() {
  py::list result;
  for (const softkern::cpu::Isa& isa : softkern::cpu::isas()) {
    result.append(py::make_tuple(isa.name, isa.table != nullptr, isa.reason));
  }
  return result;
}

void set_triton_probe(py::function probe) {
  // Never released: the process may end in a thread without an interpreter.
  const py::handle held = probe.release();
  softkern::set_triton_probe([held](const std::string& device_type) {
    const py::gil_scoped_acquire gil;
    return held(device_type).cast<bool>();
  });
}

bool exports_to_onnx() {
  const py::gil_scoped_acquire gil;
  const py::dict modules = py::module_::import("sys").attr("modules");
  // An export loads torch.onnx, so there is none before it is loaded.
  return modules.contains("torch.onnx") && modules["torch.onnx"].attr("is_in_onnx_export")().cast<bool>();
}

py::dict build() {
  const softkern::Build& build = softkern::kBuild;
  py::dict result;
  result["compiler"] = build.compiler;
  result["cxx_standard"] = build.cxx_standard;
  result["torch"] = build.torch;
  result["version"] = build.version;
  result["cuda_architectures"] = build.cuda_architectures;
  result["cuda_emulated"] = build.cuda_emulated;
  return result;
}

}  // namespace

PYBIND11_MODULE(_pybind, m) {
  softkern::set_onnx_probe(&exports_to_onnx);
  softkern::entry::for_each(
      [&](const char* name, auto function) { m.def(name, torch::wrap_pybind_function_no_gil(*function)); });
  m.def("op_names", &op_names);
  m.def("isas", &isas);
  m.def("active_isa", [] { return softkern::cpu::active().isa; });
  m.def("last_isa", [] { return softkern::last_ran().isa; });
  m.def("last_path", [] { return softkern::last_ran().path; });
  m.def("set_last", &softkern::set_last_ran_by_name);
  m.def("why_no_cuda", &softkern::why_no_cuda, py::call_guard<py::gil_scoped_release>());
  m.def("set_triton_probe", &set_triton_probe);
  m.def("choose_for_process", &softkern::choose_for_process);
  m.def("choose_for_thread", &softkern::choose_for_thread);
  m.def("required", &softkern::required);
  m.def("huge_pages_wanted", &softkern::cpu::huge_pages_wanted);
  m.def("thread_choice", &softkern::thread_choice);
  m.def("set_patience", &softkern::cpu::Patience::set_limit);
  m.def("put_behind", [](py::handle function, const std::string& op, py::handle others) {
    softkern::put_behind(function.ptr(), op, others.ptr());
  });
  m.def("take_away", [](py::handle function) { softkern::take_away(function.ptr()); });
  m.def("makes_a_graph", &softkern::makes_a_graph);
  m.def("build", &build);
}
