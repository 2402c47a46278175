// SPDX-License-Identifier: Apache-2.0
// One call of a kernel, or none: the job whose instructions arm_instructions.py counts.
//   arm_instructions ISA softmax|cross_entropy float|bfloat16 ROWS CLASSES CALLS
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "../csrc/cpu/dispatch.h"

using namespace softkern;
using namespace softkern::cpu;

int main(int argc, char** argv) {
  if (argc != 7) return 2;
  const bool is_float = strcmp(argv[3], "float") == 0;
  const int64_t rows = atoll(argv[4]), classes = atoll(argv[5]);
  choose_for_process(argv[1]);
  const Kernels& kernels = *active().by_type[is_float ? kFloat : kBFloat16];
  const size_t size = is_float ? 4 : 2;
  std::vector<char> x(rows * classes * size), y(x.size());
  for (int64_t i = 0; i < rows * classes; ++i) {
    const float value = static_cast<float>(i * 37 % 101) * 0.125f;  // exact in both types
    memcpy(&x[i * size], reinterpret_cast<const char*>(&value) + 4 - size, size);
  }
  std::vector<int64_t> target(rows, classes / 2);
  std::vector<float> loss(rows);
  const Shape shape{classes, 1};
  const Rows from{x.data(), classes, 0, 1}, to{y.data(), classes, 0, 1};
  for (int64_t call = 0; call < atoll(argv[6]); ++call) {
    if (strcmp(argv[2], "softmax") == 0) {
      const ForwardArgs args{shape, from, to, false};
      std::vector<char> scratch(kernels.softmax.scratch_bytes(args, rows));
      kernels.softmax.rows(args, {0, rows, scratch.data()});
    } else {
      CrossEntropyArgs args{};
      args.shape = shape;
      args.logits = from;
      args.target = target.data();
      args.loss = loss.data();
      args.grad = to;
      args.grad_factor = 1;
      std::vector<char> scratch(kernels.cross_entropy.scratch_bytes(args, rows));
      kernels.cross_entropy.rows(args, {0, rows, scratch.data()});
    }
  }
  return 0;
}
