// SPDX-License-Identifier: Apache-2.0
// Puts softkern behind torch's C functions (softkern.install): the code that they run is replaced, the Python
// objects stay the same.
#pragma once

#include <torch/csrc/python_headers.h>

#include <string>

namespace softkern {

/// Makes `function`, a softmax of torch's that is written in C, run softkern's op of the name `op`. torch's
/// code runs the calls that the op does not take: other arguments and types, overrides, and calls while a
/// graph is being made. For a tensor of a subclass, `others(input, dim, dtype)` is called first; it returns
/// None to leave the call to torch's code. Raises ValueError if `function` is not called as expected.
void put_behind(PyObject* function, const std::string& op, PyObject* others);

/// Makes `function` run torch's code again.
void take_away(PyObject* function);

/// Whether a graph is being made of this thread's calls, by a tracer or with tensors that have no values.
bool makes_a_graph();

}  // namespace softkern
