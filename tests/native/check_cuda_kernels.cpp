// SPDX-License-Identifier: Apache-2.0
// Stands in for the kernels of tools/check_cuda.cpp: a softmax on the host. -DPLANTED names the error that it
// has: 1, the last class of the last row is 0; 2, something before the first row is written; 3, no launch.
#include <cmath>

#include "cuda/cases.h"

namespace softkern::cuda {

using tools::T;

template <>
Outcome compute<Softmax, T>(const ForwardArgs& args, const DeviceStream&) {
  if (PLANTED == 3) return {"no launch", ""};
  const int64_t classes = args.shape.classes;
  for (int64_t r = 0; r < args.rows; ++r) {
    const T* x = static_cast<const T*>(args.input.data) + r * args.input.outer_stride;
    T* y = static_cast<T*>(args.output.data) + r * args.output.outer_stride;
    const auto s = tools::statistics(classes, [&](int64_t c) { return tools::number(x[c]); });
    for (int64_t c = 0; c < classes; ++c) y[c] = tools::element(s.share(tools::number(x[c])));
    if (PLANTED == 1 && r + 1 == args.rows) y[classes - 1] = tools::element(0);
  }
  if (PLANTED == 2) static_cast<T*>(args.output.data)[-1] = tools::element(0);
  return {nullptr, "on the host"};
}
template <>
Outcome compute<LogSoftmax, T>(const ForwardArgs&, const DeviceStream&) {
  return {"not here", ""};
}
template <>
Outcome compute<Softmax, T>(const BackwardArgs&, const DeviceStream&) {
  return {"not here", ""};
}
template <>
Outcome compute<LogSoftmax, T>(const BackwardArgs&, const DeviceStream&) {
  return {"not here", ""};
}

}  // namespace softkern::cuda

namespace softkern::tools {

void add_losses(std::vector<Case>&, const Layout&) {}
void add_scalings(std::vector<Case>&, const Layout&) {}
void add_sums(std::vector<Case>&) {}
void add_row_losses(std::vector<Case>&, const Layout&) {}

}  // namespace softkern::tools
