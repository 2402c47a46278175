// SPDX-License-Identifier: Apache-2.0
// The cells of tools/time_cuda.cpp: calls of kernels, and the bytes that each has to move.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "operands.h"

namespace softkern::tools {

/// An op on operands of any layout.
struct Op {
  std::string name;
  std::function<cuda::Outcome(const Operands&)> call;
  /// Bytes that have to be read and written, each once.
  std::function<int64_t(const Layout&)> bytes;
};

std::vector<Op> all_ops();

struct Group {
  std::vector<Layout> layouts;
  std::vector<std::string> ops;  // empty: all of them
};

/// What is asked of every run comes first, so that a run that is cut short has it.
std::vector<Group> all_groups();

}  // namespace softkern::tools
