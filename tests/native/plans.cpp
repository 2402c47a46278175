// SPDX-License-Identifier: Apache-2.0
// The plans of softmax and its backward for rows of the classes given as arguments, on a device with the
// shared memory of compute capability 9.0: aligned, unaligned, and columns, whose classes are apart. A line
// for each: which of these, tensors, classes, blocks of a row, threads and bytes of shared memory of a block,
// rows of a block, way.
#include <cstdio>
#include <cstdlib>

#include "../../csrc/cuda/device.h"
#include "../../csrc/cuda/launch.cuh"

using namespace softkern;
using namespace softkern::cuda;

namespace {

template <class Limits>
void show(const char* name, const Rows& rows, const Shape& shape) {
  using T = SOFTKERN_ELEMENT;
  const Launch setup = launch_of<T, Limits>(shape, 2048, on_device(0, nullptr), {&rows});
  const Plan& plan = setup.plan;
  printf("%s %d %lld %d %d %zu %d %s\n", name, Limits::kSharedTensors, static_cast<long long>(shape.classes),
         plan.blocks, plan.threads, setup.dims.shared, plan.threads / plan.team, plan.path);
}

}  // namespace

int main(int count, char** classes) {
  for (int i = 1; i < count; ++i) {
    using T = SOFTKERN_ELEMENT;
    const int64_t n = atoll(classes[i]), inner = 196;
    const auto show_both = [](const char* name, const Rows& rows, const Shape& shape) {
      show<OneTensor<T>>(name, rows, shape);
      show<TwoTensors<T>>(name, rows, shape);
    };
    show_both("aligned", {reinterpret_cast<void*>(64), n, 1, 1}, {n, 1});
    // Even if its rows are whole numbers of 16 bytes.
    show_both("unaligned", {reinterpret_cast<void*>(64 + sizeof(T)), n, 1, 1}, {n, 1});
    show_both("columns", {reinterpret_cast<void*>(64), n * inner, 1, inner}, {n, inner});
  }
}
