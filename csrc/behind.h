// SPDX-License-Identifier: Apache-2.0
// softkern behind torch's C functions: what they run is changed, the objects stay.
#pragma once

#include <torch/csrc/python_headers.h>

#include <string>

namespace softkern {

/// Lets `function`, a softmax of torch's that is written in C, run softkern's op of that name. What the
/// op does not take goes to torch's code: other arguments and types, overrides, and graphs in the
/// making. For a tensor of a type of its own `others(input, dim, dtype)` is asked first; it returns None
/// to leave the call to torch's code. Raises ValueError if `function` is not called as expected.
void put_behind(PyObject* function, const std::string& op, PyObject* others);

/// Lets `function` run torch's code again.
void take_away(PyObject* function);

/// Whether a graph is being made of this thread's calls: by a tracer, or from tensors without values.
bool makes_a_graph();

}  // namespace softkern
