// SPDX-License-Identifier: Apache-2.0
// The functions that Python calls directly: the ops (a call of the dispatcher without the Python layer of
// torch.ops), the choice of the backend, and the properties of this build.
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include <mutex>
#include <string>
#include <unordered_set>

#include "autograd/output_node.h"
#include "behind.h"
#include "cpu/dispatch.h"
#include "cpu/memory.h"
#include "ops/backend.h"
#include "ops/cpu/patience.h"
#include "ops/onnx.h"
#include "ops/fallback.h"
#include "ops/linear_cross_entropy/aten.h"
#include "ops/ops.h"
#include "ops/ran.h"
#include "ops/row_losses/aten.h"
#include "ops/row_losses/call.h"

namespace py = pybind11;

namespace {

// Tracers record the op that is called here, and the op itself can't prevent this. So exports to ONNX call
// torch's ops instead.

template <class Op>
at::Tensor softmax(const at::Tensor& input, int64_t dim) {
  return softkern::is_traced_for_onnx(input) ? Op::torchs(input, dim) : Op::forward(input, dim);
}

at::Tensor cross_entropy(const at::Tensor& input, const at::Tensor& target,
                         const std::optional<at::Tensor>& weight, const softkern::CrossEntropyOptions& given,
                         bool inplace_backward) {
  const softkern::SymCrossEntropyOptions options = softkern::symbolic(given);
  if (softkern::is_traced_for_onnx(input)) {
    return softkern::aten_cross_entropy(input, target, weight, options);
  }
  if (inplace_backward) return softkern::cross_entropy_(input, target, weight, options);
  return softkern::cross_entropy(input, target, weight, options);
}

softkern::RowResults row_losses(const at::Tensor& input, SOFTKERN_ROW_TENSORS,
                                const softkern::RowOptions& given, bool inplace_backward) {
  const softkern::SymRowOptions options = softkern::symbolic(given);
  if (softkern::is_traced_for_onnx(input)) {
    return softkern::row_losses_in_aten({input, target, weight, row_weight, num_items, target_probs},
                                        options);
  }
  if (inplace_backward) {
    return softkern::row_losses_(input, target, weight, row_weight, num_items, target_probs, options);
  }
  return softkern::row_losses(input, target, weight, row_weight, num_items, target_probs, options);
}

/// For tensors whose class knows ATen's ops alone, and for the decompositions of exported programs.
softkern::RowResults row_losses_in_aten(const at::Tensor& input, SOFTKERN_ROW_TENSORS,
                                        const softkern::SymRowOptions& options) {
  return softkern::row_losses_in_aten({input, target, weight, row_weight, num_items, target_probs}, options);
}

/// The step row_losses of the backend for logits (N, C) of the classes from `first` on, so that tests can
/// call it alone.
void row_losses_step(const at::Tensor& input, SOFTKERN_ROW_TENSORS, const softkern::RowOptions& options,
                     int64_t first, const std::optional<at::Tensor>& whole,
                     const std::optional<at::Tensor>& parts, const std::optional<at::Tensor>& of_loss,
                     const std::optional<at::Tensor>& of_log_prob, const std::optional<at::Tensor>& of_lse,
                     const std::optional<at::Tensor>& of_entropy, const std::optional<at::Tensor>& loss,
                     const std::optional<at::Tensor>& grad) {
  const auto& kernels = softkern::cross_entropy_kernels(input.device());
  const softkern::RowTensors of(input, target, weight, row_weight, num_items, target_probs);
  softkern::RowCall call{input, of.kind()};
  call.options = options;
  call.dim = 1;
  call.layout = softkern::layout_of(input, 1);
  call.compute = softkern::compute_type(input);
  if (call.kind == softkern::TargetKind::kProbabilities) {
    call.probabilities = of.target;
  } else if (of.target.defined()) {
    call.target = of.target.to(kernels.index_type(of.target.scalar_type())).contiguous();
    call.per_row = call.kind == softkern::TargetKind::kIndices ? of.target.size(1) : 1;
  }
  if (of.target_probs.defined()) call.target_probs = of.target_probs.to(call.compute).contiguous();
  call.weight = of.weight;
  if (of.row_weight.defined()) call.row_weight = of.row_weight.to(call.compute);
  call.first = first;
  call.whole = whole.value_or(at::Tensor());
  softkern::RowOutputs outputs;
  outputs.parts = parts.value_or(at::Tensor());
  outputs.loss = loss.value_or(at::Tensor());
  softkern::RowGradients upstream;
  upstream.factor = {of_loss.has_value() ? 1.0 : 0.0};
  upstream.loss = of_loss.value_or(at::Tensor());
  upstream.log_prob = of_log_prob.value_or(at::Tensor());
  upstream.lse = of_lse.value_or(at::Tensor());
  upstream.entropy = of_entropy.value_or(at::Tensor());
  kernels.row_losses(call, outputs, upstream, grad.value_or(at::Tensor()));
}

bool takes_row_losses(const at::Tensor& input, SOFTKERN_ROW_TENSORS, const softkern::SymRowOptions& options) {
  return softkern::takes_row_losses({input, target, weight, row_weight, num_items, target_probs}, options);
}

softkern::RowResults linear_cross_entropy(SOFTKERN_LINEAR_TENSORS, const softkern::LinearOptions& given) {
  const softkern::SymLinearOptions options = softkern::symbolic(given);
  if (softkern::is_traced_for_onnx(input)) {
    return softkern::linear_cross_entropy_in_aten(
        {input, linear_weight, linear_bias, target, weight, row_weight, num_items, target_probs}, options);
  }
  return softkern::linear_cross_entropy(input, linear_weight, linear_bias, target, weight, row_weight,
                                        num_items, target_probs, options);
}

softkern::RowResults linear_cross_entropy_in_aten(SOFTKERN_LINEAR_TENSORS,
                                                  const softkern::SymLinearOptions& options) {
  return softkern::linear_cross_entropy_in_aten(
      {input, linear_weight, linear_bias, target, weight, row_weight, num_items, target_probs}, options);
}

bool takes_linear_cross_entropy(SOFTKERN_LINEAR_TENSORS, const softkern::SymLinearOptions& options) {
  return softkern::takes_linear_cross_entropy(
      {input, linear_weight, linear_bias, target, weight, row_weight, num_items, target_probs}, options);
}

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

/// The names of kernels are string literals in C++. Names from Python are kept as long as literals.
const char* kept(const std::string& name) {
  static std::mutex mutex;
  static auto& names = *new std::unordered_set<std::string>;
  const std::lock_guard<std::mutex> lock(mutex);
  return names.insert(name).first->c_str();
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
  softkern::set_onnx_probe(&exports_to_onnx);
  softkern::for_each_softmax(
      [&](auto op) { m.def(op.forward.kName, torch::wrap_pybind_function_no_gil(softmax<decltype(op)>)); });
  m.def("cross_entropy", torch::wrap_pybind_function_no_gil(*softkern::unpacked<&cross_entropy>));
  m.def("row_losses", torch::wrap_pybind_function_no_gil(*softkern::unpacked<&row_losses>));
  m.def("takes_cross_entropy",
        torch::wrap_pybind_function_no_gil(*softkern::unpacked<&softkern::takes_cross_entropy>));
  m.def("row_losses_in_aten", torch::wrap_pybind_function_no_gil(*softkern::unpacked<&row_losses_in_aten>));
  m.def("takes_row_losses", torch::wrap_pybind_function_no_gil(*softkern::unpacked<&takes_row_losses>));
  m.def("linear_cross_entropy",
        torch::wrap_pybind_function_no_gil(*softkern::unpacked<&linear_cross_entropy>));
  m.def("linear_cross_entropy_in_aten",
        torch::wrap_pybind_function_no_gil(*softkern::unpacked<&linear_cross_entropy_in_aten>));
  m.def("takes_linear_cross_entropy",
        torch::wrap_pybind_function_no_gil(*softkern::unpacked<&takes_linear_cross_entropy>));
  m.def("row_losses_step", torch::wrap_pybind_function_no_gil(*softkern::unpacked<&row_losses_step>));
  m.def("op_names", &op_names);
  m.def("isas", &isas);
  m.def("active_isa", [] { return softkern::cpu::active().isa; });
  m.def("last_isa", [] { return softkern::last_ran().isa; });
  m.def("last_path", [] { return softkern::last_ran().path; });
  m.def("set_last", [](const std::string& isa, const std::string& path) {
    softkern::set_last_ran({kept(isa), kept(path)});
  });
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
