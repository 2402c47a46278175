// SPDX-License-Identifier: Apache-2.0
// softmax and log_softmax by Triton.
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/softmax.h>
#include <torch/library.h>

#include "../checks.h"
#include "../fallback.h"
#include "triton.h"

namespace softkern::triton {

// Inference tensors come here past autograd's checks.
Tensor softmax(const Tensor& self, int64_t dim) {
  static const auto op = handle<decltype(softkern::softmax)>("softkern_triton::softmax");
  if (!takes_tensor(self)) return by_aten(at::softmax(self, dim));
  return op.redispatch(kernels_of(self), self, dim);
}

Tensor log_softmax(const Tensor& self, int64_t dim) {
  static const auto op = handle<decltype(softkern::log_softmax)>("softkern_triton::log_softmax");
  if (!takes_tensor(self)) return by_aten(at::log_softmax(self, dim));
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

namespace {

void register_kernels(torch::Library& m) {
  m.impl("softmax", &softmax);
  m.impl("log_softmax", &log_softmax);
  m.impl("softmax_backward", &softmax_backward);
  m.impl("log_softmax_backward", &log_softmax_backward);
}

}  // namespace

TORCH_LIBRARY_IMPL(softkern, CUDA, m) { register_kernels(m); }
TORCH_LIBRARY_IMPL(softkern, XPU, m) { register_kernels(m); }

}  // namespace softkern::triton
