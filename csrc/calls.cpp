// SPDX-License-Identifier: Apache-2.0
// The functions of entry.h for a Python without pybind11, as a library of the dispatcher. Python calls their
// kernels without dispatch (OperatorHandle::redispatchBoxed), so that no tracer and no mode sees these calls,
// only the ops that they call.
#include <torch/library.h>

#include "entry.h"

TORCH_LIBRARY(softkern_calls, m) {
  softkern::entry::for_each([&](const char* name, auto function) { m.def(name, function); });
}
