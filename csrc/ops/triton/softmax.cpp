// SPDX-License-Identifier: Apache-2.0
// softmax and log_softmax by Triton; and the library of the ops that Python registers.
#include <torch/library.h>

#include "triton.h"

namespace softkern::triton {
namespace {

template <const auto& kOp>
Tensor forward(const Tensor& self, int64_t dim) {
  return kOp.redispatch(kernels_of(self), self, dim);
}
template <const auto& kOp>
Tensor backward(const Tensor& grad_output, const Tensor& output, int64_t dim) {
  return kOp.redispatch(kernels_of(output), grad_output, output, dim);
}

[[maybe_unused]] const bool kSoftmaxesNamed[] = {
    softkern::softmax.computed_by(Backend::kTriton, &forward<softmax>),
    softkern::log_softmax.computed_by(Backend::kTriton, &forward<log_softmax>),
    softkern::softmax_backward.computed_by(Backend::kTriton, &backward<softmax_backward>),
    softkern::log_softmax_backward.computed_by(Backend::kTriton, &backward<log_softmax_backward>),
};

}  // namespace

TORCH_LIBRARY(softkern_triton, m) {
  const auto define = [&](const auto&... op) { (m.def(op.kSchema), ...); };
  define(softmax, log_softmax, softmax_backward, log_softmax_backward);
  define(target_weight, cross_entropy_rows, reduce_losses, scale_gradient);
}

}  // namespace softkern::triton
