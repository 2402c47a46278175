// SPDX-License-Identifier: Apache-2.0
// The plans of softmax and its backward for aligned and unaligned rows of the classes given as arguments, on
// a device with the shared memory of compute capability 9.0. A line for each: aligned or not, tensors,
// classes, blocks of a row, threads and bytes of shared memory of a block, way.
#include <cstdio>
#include <cstdlib>

#include "../../csrc/cuda/device.h"
#include "../../csrc/cuda/launch.cuh"

using namespace softkern;
using namespace softkern::cuda;

namespace {

template <class Limits>
void show(const char* name, int64_t classes, bool aligned) {
  using T = SOFTKERN_ELEMENT;
  // Of an unaligned tensor, even if its rows are whole numbers of 16 bytes.
  const Rows rows{reinterpret_cast<void*>(aligned ? 64 : 64 + sizeof(T)), classes, 1, 1};
  const Shape shape{classes, 1};
  const Launch setup = launch_of<T, Limits>(shape, 2048, on_device(0, nullptr), {&rows});
  const Plan& plan = setup.plan;
  printf("%s %d %lld %d %d %zu %s\n", name, Limits::kSharedTensors, static_cast<long long>(classes),
         plan.blocks, plan.threads, setup.dims.shared, plan.path);
}

}  // namespace

int main(int count, char** classes) {
  for (int i = 1; i < count; ++i) {
    for (const bool aligned : {true, false}) {
      const char* name = aligned ? "aligned" : "unaligned";
      show<OneTensor<SOFTKERN_ELEMENT>>(name, atoll(classes[i]), aligned);
      show<TwoTensors<SOFTKERN_ELEMENT>>(name, atoll(classes[i]), aligned);
    }
  }
}
