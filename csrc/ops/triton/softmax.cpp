// SPDX-License-Identifier: Apache-2.0
// softmax and log_softmax by Triton.
#include "triton.h"

namespace softkern::triton {

Tensor softmax(const Tensor& self, int64_t dim) {
  static const auto op = handle<decltype(softkern::softmax)>("softkern_triton::softmax");
  return op.redispatch(kernels_of(self), self, dim);
}

Tensor log_softmax(const Tensor& self, int64_t dim) {
  static const auto op = handle<decltype(softkern::log_softmax)>("softkern_triton::log_softmax");
  return op.redispatch(kernels_of(self), self, dim);
}

Tensor softmax_backward(const Tensor& grad_output, const Tensor& output, int64_t dim) {
  static const auto op = handle<decltype(softkern::softmax_backward)>("softkern_triton::softmax_backward");
  return op.redispatch(kernels_of(output), grad_output, output, dim);
}

Tensor log_softmax_backward(const Tensor& grad_output, const Tensor& output, int64_t dim) {
  static const auto op =
      handle<decltype(softkern::log_softmax_backward)>("softkern_triton::log_softmax_backward");
  return op.redispatch(kernels_of(output), grad_output, output, dim);
}

}  // namespace softkern::triton
