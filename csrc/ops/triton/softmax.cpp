// SPDX-License-Identifier: Apache-2.0
// softmax and log_softmax with Triton's kernels, and the library of ops whose kernels Python registers.
#include <torch/library.h>

#include "triton.h"

namespace softkern::triton {
namespace {

[[maybe_unused]] const bool kSoftmaxesNamed = [] {
  for_each_softmax_op([](const auto& op) { computed_by_namesake(op); });
  return true;
}();

}  // namespace

TORCH_LIBRARY(softkern_triton, m) {
  for_each_softmax_op([&](const auto& op) { m.def(op.kSchema); });
  const auto define = [&](const auto&... op) { (m.def(op.kSchema), ...); };
  define(target_weight, cross_entropy_rows, row_losses, merge_rows, reduce_losses, scale_gradient);
}

}  // namespace softkern::triton
