// SPDX-License-Identifier: Apache-2.0
// cross_entropy by Triton.
#include "triton.h"

namespace softkern::triton {
namespace {

/// The same memory in a tensor that Python has never seen. One that it has seen counts its Python object
/// among its owners, for good: backward would take it for somebody else's, and scale it into a new tensor.
Tensor unseen(const Tensor& x) {
  return Tensor(x.unsafeGetTensorImpl()->shallow_copy_and_detach(/*version_counter=*/0,
                                                                 /*allow_tensor_metadata_change=*/true));
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> cross_entropy_forward(const Tensor& self, const Tensor& target,
                                                         const OptionalTensor& weight, int64_t reduction,
                                                         c10::SymInt ignore_index, double label_smoothing,
                                                         bool need_grad) {
  static const auto op =
      handle<decltype(softkern::cross_entropy_forward)>("softkern_triton::cross_entropy_forward");
  auto [loss, grad, grad_scale] = op.redispatch(kernels_of(self), self, target, weight, reduction,
                                                std::move(ignore_index), label_smoothing, need_grad);
  return {std::move(loss), unseen(grad), std::move(grad_scale)};
}

std::tuple<Tensor, Tensor> cross_entropy_forward_(Tensor self, const Tensor& target,
                                                  const OptionalTensor& weight, int64_t reduction,
                                                  c10::SymInt ignore_index, double label_smoothing) {
  static const auto op =
      handle<decltype(softkern::cross_entropy_forward_)>("softkern_triton::cross_entropy_forward_");
  return op.redispatch(kernels_of(self), self, target, weight, reduction, std::move(ignore_index),
                       label_smoothing);
}

Tensor cross_entropy_backward(const Tensor& grad_output, const Tensor& grad, const Tensor& grad_scale,
                              const Tensor& target, c10::SymInt ignore_index) {
  static const auto op =
      handle<decltype(softkern::cross_entropy_backward)>("softkern_triton::cross_entropy_backward");
  // Of a retained graph: a later backward may be allowed to scale in place.
  return op.redispatch(kernels_of(grad), grad_output, unseen(grad), grad_scale, target,
                       std::move(ignore_index));
}

void cross_entropy_backward_(const Tensor& grad_output, Tensor grad, const Tensor& grad_scale,
                             const Tensor& target, c10::SymInt ignore_index) {
  static const auto op =
      handle<decltype(softkern::cross_entropy_backward_)>("softkern_triton::cross_entropy_backward_");
  op.redispatch(kernels_of(grad), grad_output, grad, grad_scale, target, std::move(ignore_index));
}

}  // namespace softkern::triton
