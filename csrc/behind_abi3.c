/* SPDX-License-Identifier: Apache-2.0 */
/* behind.cpp for every Python and torch: the functions of C that it exchanges are the same, and Python decides
   about each call (softkern/_binding/behind.py). Compiled with Python's limited API, whose headers hide the two
   structs below; their first fields are the same from Python 3.8 on. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030A0000
#include <Python.h>

typedef PyObject* (*Vectorcall)(PyObject*, PyObject* const*, size_t, PyObject*);
typedef void (*AnyFunction)(void);

typedef struct {
  PyObject_HEAD
  PyTypeObject* type;
  PyObject* name;
  PyObject* qualname;
  PyMethodDef* definition;
} MethodDescriptor;

typedef struct {
  PyObject_HEAD
  PyMethodDef* definition;
  PyObject* self;
  PyObject* module;
  PyObject* weak_references;
  Vectorcall vectorcall;
} CFunction;

/* What runs in place of a function of torch's. A place is never freed, because a call may be running. */
typedef struct {
  PyObject* function;
  PyCFunctionWithKeywords torchs;
  PyObject* ours; /* returns NotImplemented to leave the call to torch's code */
} Behind;

enum { kMethods = 2, kFunctions = 4 };
static Behind methods[kMethods];
static Behind functions[kFunctions];

/* Softkern's result; null with an exception, or, for torch's code, without one. */
static PyObject* ours(const Behind* behind, PyObject* args, PyObject* kwargs) {
  PyObject* result = PyObject_Call(behind->ours, args, kwargs);
  if (result != Py_NotImplemented) return result;
  Py_DECREF(result);
  return NULL;
}

static PyObject* run_method(const Behind* behind, PyObject* self, PyObject* args, PyObject* kwargs) {
  PyObject* first = PyTuple_Pack(1, self);
  PyObject* all = first == NULL ? NULL : PySequence_Concat(first, args);
  PyObject* result = all == NULL ? NULL : ours(behind, all, kwargs);
  Py_XDECREF(first);
  Py_XDECREF(all);
  if (result != NULL || PyErr_Occurred()) return result;
  return behind->torchs(self, args, kwargs);
}

static PyObject* run_method_0(PyObject* self, PyObject* args, PyObject* kwargs) {
  return run_method(&methods[0], self, args, kwargs);
}
static PyObject* run_method_1(PyObject* self, PyObject* args, PyObject* kwargs) {
  return run_method(&methods[1], self, args, kwargs);
}
static const PyCFunctionWithKeywords kRunMethod[kMethods] = {run_method_0, run_method_1};

static int copy_arguments(PyObject* const* args, Py_ssize_t count, PyObject* names, PyObject* positional,
                          PyObject* named) {
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (PyTuple_SetItem(positional, i, Py_NewRef(args[i])) != 0) return -1;
  }
  for (Py_ssize_t i = 0; names != NULL && i < PyTuple_Size(names); ++i) {
    if (PyDict_SetItem(named, PyTuple_GetItem(names, i), args[count + i]) != 0) return -1;
  }
  return 0;
}

static PyObject* run_function(PyObject* function, PyObject* const* args, size_t nargs, PyObject* names) {
  const size_t kOffset = (size_t)1 << (8 * sizeof(size_t) - 1); /* PY_VECTORCALL_ARGUMENTS_OFFSET */
  const Py_ssize_t count = (Py_ssize_t)(nargs & ~kOffset);
  PyObject* positional = PyTuple_New(count);
  const int keywords = names != NULL && PyTuple_Size(names) != 0; /* none: null, as torch passes to classes */
  PyObject* named = keywords ? PyDict_New() : NULL;
  PyObject* result = NULL;
  if (positional != NULL && (named != NULL || !keywords) && copy_arguments(args, count, names, positional, named) == 0) {
    for (int i = 0; i < kFunctions && result == NULL && !PyErr_Occurred(); ++i) {
      if (functions[i].function == function) result = ours(&functions[i], positional, named);
    }
    if (result == NULL && !PyErr_Occurred()) {
      /* The type's tp_call does not use the object's vectorcall pointer. */
      const ternaryfunc torchs = (ternaryfunc)PyType_GetSlot(Py_TYPE(function), Py_tp_call);
      result = torchs(function, positional, named);
    }
  }
  Py_XDECREF(positional);
  Py_XDECREF(named);
  return result;
}

static int is_method(PyObject* function) { return Py_TYPE(function) == &PyMethodDescr_Type; }

static PyMethodDef* definition(PyObject* function) {
  if (is_method(function)) return ((MethodDescriptor*)function)->definition;
  return Py_TYPE(function) == &PyCFunction_Type ? ((CFunction*)function)->definition : NULL;
}

/* The function's place, otherwise a free one, otherwise null. */
static Behind* place_of(PyObject* function) {
  Behind* places = is_method(function) ? methods : functions;
  const int count = is_method(function) ? kMethods : kFunctions;
  for (int i = 0; i < count; ++i) {
    if (places[i].function == NULL || places[i].function == function) return &places[i];
  }
  return NULL;
}

/* Threads may be calling the function, so the pointers are written atomically. */
static void exchange(PyObject* function, PyCFunctionWithKeywords method, Vectorcall vectorcall) {
  if (is_method(function)) {
    __atomic_store_n(&definition(function)->ml_meth, (PyCFunction)(AnyFunction)method, __ATOMIC_RELEASE);
  } else {
    __atomic_store_n(&((CFunction*)function)->vectorcall, vectorcall, __ATOMIC_RELEASE);
  }
}

static PyObject* put_behind(PyObject* module, PyObject* args) {
  (void)module;
  PyObject *function, *callable;
  if (!PyArg_ParseTuple(args, "OO", &function, &callable)) return NULL;
  const PyMethodDef* def = definition(function);
  /* Functions with other flags are called without reading the pointers that are written here. */
  if (def == NULL || (def->ml_flags & ~METH_STATIC) != (METH_VARARGS | METH_KEYWORDS)) {
    return PyErr_Format(PyExc_ValueError, "not a C function of arguments and keywords: %R", function);
  }
  Behind* behind = place_of(function);
  if (behind == NULL) return PyErr_Format(PyExc_ValueError, "softkern is behind other functions already");
  if (behind->function == NULL) {
    behind->torchs = (PyCFunctionWithKeywords)(AnyFunction)def->ml_meth;
    behind->ours = Py_NewRef(callable);
    behind->function = Py_NewRef(function);
  }
  exchange(function, is_method(function) ? kRunMethod[behind - methods] : NULL, run_function);
  Py_RETURN_NONE;
}

static PyObject* take_away(PyObject* module, PyObject* function) {
  (void)module;
  const Behind* behind = place_of(function);
  if (behind != NULL && behind->function != NULL) exchange(function, behind->torchs, NULL);
  Py_RETURN_NONE;
}

static PyMethodDef kFunctionsOfModule[] = {
    {"put_behind", put_behind, METH_VARARGS, "put_behind(function, ours): make a C function call `ours`"},
    {"take_away", take_away, METH_O, "take_away(function): make it run torch's code again"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef kModule = {PyModuleDef_HEAD_INIT, "_behind", NULL, -1, kFunctionsOfModule,
                                     NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__behind(void) { return PyModule_Create(&kModule); }
