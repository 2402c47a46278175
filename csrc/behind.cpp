// SPDX-License-Identifier: Apache-2.0
// Only a pointer inside torch's objects is overwritten. So code that keeps an object, pickles it, or knows it
// by its identity or hash (classes with __torch_function__, torch.compile, torch.fx, torch.jit) still sees
// the object that torch made.
//
// For a method of the tensor class, this pointer is the C function in its PyMethodDef, which bound methods
// use too. The hash of a function depends on its C function, so there it is the vectorcall pointer of the
// function object.
#include "behind.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/Dtype.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/csrc/utils/python_numbers.h>
#include <torch/csrc/utils/tensor_numpy.h>

#include <array>
#include <utility>

#include "ops/ops.h"

namespace py = pybind11;

namespace softkern {
namespace {

/// What runs in place of a function of torch's.
struct Behind {
  PyObject* function = nullptr;
  PyCFunction torchs = nullptr;
  at::Tensor (*op)(const at::Tensor&, int64_t) = nullptr;
  PyObject* others = nullptr;
};

// Two methods, and the functions of torch and torch.special. A place is never freed, because a call may be
// running.
std::array<Behind, 2> methods;
std::array<Behind, 4> functions;

/// The arguments of a call that passes input, dim and dtype, each at most once, and nothing else. torch takes
/// or refuses all other calls.
class Arguments {
 public:
  bool add(PyObject* value) { return given_ < values_.size() && set(given_++, value); }

  bool add(PyObject* name, PyObject* value) {
    constexpr std::array kNames{"input", "dim", "dtype"};
    for (size_t i = 0; i < kNames.size(); ++i) {
      if (PyUnicode_CompareWithASCIIString(name, kNames[i]) == 0) return set(i, value);
    }
    return false;
  }

  bool complete() const {
    return input() != nullptr && dim() != nullptr &&
           (THPUtils_checkLong(dim()) || torch::utils::is_numpy_int(dim())) &&
           (dtype() == nullptr || dtype() == Py_None || THPDtype_Check(dtype()));
  }

  PyObject* input() const { return values_[0]; }
  PyObject* dim() const { return values_[1]; }
  PyObject* dtype() const { return values_[2]; }

 private:
  bool set(size_t i, PyObject* value) {
    if (values_[i] != nullptr) return false;
    values_[i] = value;
    return true;
  }

  std::array<PyObject*, 3> values_{};
  size_t given_ = 0;
};

PyObject* of_plain_tensor(const Behind& behind, const Arguments& given) {
  int overflow = 0;
  const int64_t dim = PyLong_AsLongLongAndOverflow(given.dim(), &overflow);
  if (dim == -1 && PyErr_Occurred()) throw python_error();
  if (overflow != 0) return nullptr;
  const at::Tensor& input = THPVariable_Unpack(given.input());
  at::Tensor result;
  {
    const py::gil_scoped_release no_gil;
    result = given.dtype() == nullptr || given.dtype() == Py_None
                 ? behind.op(input, dim)
                 : behind.op(input.to(reinterpret_cast<THPDtype*>(given.dtype())->scalar_type), dim);
  }
  return THPVariable_Wrap(std::move(result));
}

/// softkern's result of a call, or null if torch's code has to run.
PyObject* ours(const Behind& behind, const Arguments& given) {
  if (!given.complete() || at::impl::torch_function_mode_enabled() || makes_a_graph()) return nullptr;
  if (THPVariable_CheckExact(given.input())) return of_plain_tensor(behind, given);
  if (!THPVariable_Check(given.input())) return nullptr;
  PyObject* dtype = given.dtype() == nullptr ? Py_None : given.dtype();
  PyObject* result = PyObject_CallFunctionObjArgs(behind.others, given.input(), given.dim(), dtype, nullptr);
  if (result == nullptr) throw python_error();
  if (result != Py_None) return result;
  Py_DECREF(result);
  return nullptr;
}

template <size_t i>
PyObject* run_method(PyObject* self, PyObject* args, PyObject* kwargs) {
  HANDLE_TH_ERRORS
  Arguments given;
  bool all = given.add(self);
  for (Py_ssize_t k = 0; all && k < PyTuple_GET_SIZE(args); ++k) all = given.add(PyTuple_GET_ITEM(args, k));
  PyObject *name = nullptr, *value = nullptr;
  for (Py_ssize_t at = 0; all && kwargs != nullptr && PyDict_Next(kwargs, &at, &name, &value);) {
    all = given.add(name, value);
  }
  if (all) {
    if (PyObject* result = ours(methods[i], given)) return result;
  }
  END_HANDLE_TH_ERRORS
  const auto torchs = reinterpret_cast<void (*)()>(methods[i].torchs);
  return reinterpret_cast<PyCFunctionWithKeywords>(torchs)(self, args, kwargs);
}

/// Calls torch's code through the type's tp_call, which does not use the object's vectorcall pointer.
PyObject* call_torchs(PyObject* function, PyObject* const* args, size_t count, PyObject* names) {
  THPObjectPtr positional(PyTuple_New(static_cast<Py_ssize_t>(count)));
  if (!positional) return nullptr;
  for (size_t i = 0; i < count; ++i) {
    PyTuple_SET_ITEM(positional.get(), static_cast<Py_ssize_t>(i), Py_NewRef(args[i]));
  }
  THPObjectPtr named;
  if (names != nullptr && PyTuple_GET_SIZE(names) != 0) {
    named = PyDict_New();
    if (!named) return nullptr;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(names); ++i) {
      if (PyDict_SetItem(named.get(), PyTuple_GET_ITEM(names, i), args[count + i]) != 0) return nullptr;
    }
  }
  return Py_TYPE(function)->tp_call(function, positional.get(), named.get());
}

PyObject* run_function(PyObject* function, PyObject* const* args, size_t nargs, PyObject* names) {
  const auto count = static_cast<size_t>(PyVectorcall_NARGS(nargs));
  HANDLE_TH_ERRORS
  Arguments given;
  bool all = true;
  for (size_t i = 0; all && i < count; ++i) all = given.add(args[i]);
  for (Py_ssize_t i = 0; all && names != nullptr && i < PyTuple_GET_SIZE(names); ++i) {
    all = given.add(PyTuple_GET_ITEM(names, i), args[count + i]);
  }
  if (all) {
    for (const Behind& behind : functions) {
      if (behind.function != function) continue;
      if (PyObject* result = ours(behind, given)) return result;
    }
  }
  END_HANDLE_TH_ERRORS
  return call_torchs(function, args, count, names);
}

constexpr std::array<PyCFunctionWithKeywords, 2> kRunMethod{&run_method<0>, &run_method<1>};

bool is_method(PyObject* function) { return Py_TYPE(function) == &PyMethodDescr_Type; }

PyMethodDef* definition(PyObject* function) {
  if (is_method(function)) return reinterpret_cast<PyMethodDescrObject*>(function)->d_method;
  return PyCFunction_CheckExact(function) ? reinterpret_cast<PyCFunctionObject*>(function)->m_ml : nullptr;
}

/// The function's place, otherwise a free one, otherwise null.
Behind* place_of(PyObject* function) {
  const auto find = [function](auto& places) -> Behind* {
    for (Behind& behind : places) {
      if (behind.function == nullptr || behind.function == function) return &behind;
    }
    return nullptr;
  };
  return is_method(function) ? find(methods) : find(functions);
}

/// Writes atomically, because threads may be calling the function.
template <typename T>
void write(T* where, T what) {
  __atomic_store_n(where, what, __ATOMIC_RELEASE);
}

}  // namespace

bool makes_a_graph() {
  using Modes = c10::impl::TorchDispatchModeTLS;
  using Key = c10::impl::TorchDispatchModeKey;
  if (torch::jit::tracer::isTracing()) return true;
  if (!Modes::any_modes_set()) return false;
  return Modes::get_mode(Key::FAKE) || Modes::get_mode(Key::PROXY) || Modes::get_mode(Key::FUNCTIONAL);
}

void put_behind(PyObject* function, const std::string& op, PyObject* others) {
  PyMethodDef* def = definition(function);
  // Functions with other flags are called without reading the pointers that are written here.
  if (def == nullptr || (def->ml_flags & ~METH_STATIC) != (METH_VARARGS | METH_KEYWORDS)) {
    throw py::value_error("not a C function of arguments and keywords: " +
                          py::repr(function).cast<std::string>());
  }
  Behind* behind = place_of(function);
  if (behind == nullptr) throw py::value_error("softkern is behind other functions already");
  if (behind->function == nullptr) {
    *behind = {Py_NewRef(function), def->ml_meth, op == "softmax" ? &softmax.call : &log_softmax.call,
               Py_NewRef(others)};
  }
  if (is_method(function)) {
    const auto run = reinterpret_cast<void (*)()>(kRunMethod[behind - methods.data()]);
    write(&def->ml_meth, reinterpret_cast<PyCFunction>(run));
  } else {
    write(&reinterpret_cast<PyCFunctionObject*>(function)->vectorcall, vectorcallfunc{&run_function});
  }
}

void take_away(PyObject* function) {
  const Behind* behind = place_of(function);
  if (behind == nullptr || behind->function == nullptr) return;
  if (is_method(function)) {
    write(&definition(function)->ml_meth, behind->torchs);
  } else {
    write(&reinterpret_cast<PyCFunctionObject*>(function)->vectorcall, vectorcallfunc{nullptr});
  }
}

}  // namespace softkern
