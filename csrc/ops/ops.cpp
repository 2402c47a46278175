// SPDX-License-Identifier: Apache-2.0
// Schemas, and the calls through the dispatcher that ops.h promises.
#include "ops.h"

#include <torch/library.h>

#include "checks.h"
#include "fallback.h"
#include "handle.h"

namespace softkern {
namespace {

// Below autograd: inference mode and no_grad come here, and so do devices without kernels.
at::Tensor cross_entropy_below_autograd(const at::Tensor& self, const at::Tensor& target,
                                        const OptionalTensor& weight, int64_t reduction,
                                        c10::SymInt ignore_index, double label_smoothing) {
  if (!takes_cross_entropy(self, target, weight, reduction, ignore_index, label_smoothing)) {
    return cross_entropy_by_aten(self, target, weight, reduction, std::move(ignore_index), label_smoothing);
  }
  return std::get<0>(cross_entropy_forward(self, target, weight, reduction, std::move(ignore_index),
                                           label_smoothing, /*need_grad=*/false));
}

// No gradient is wanted here: the logits stay what they are.
at::Tensor cross_entropy_below_autograd_(at::Tensor self, const at::Tensor& target,
                                         const OptionalTensor& weight, int64_t reduction,
                                         c10::SymInt ignore_index, double label_smoothing) {
  return cross_entropy(self, target, weight, reduction, std::move(ignore_index), label_smoothing);
}

}  // namespace

at::Tensor softmax(const at::Tensor& self, int64_t dim) {
  static const auto op = handle<at::Tensor(const at::Tensor&, int64_t)>("softkern::softmax");
  return op.call(self, dim);
}

at::Tensor log_softmax(const at::Tensor& self, int64_t dim) {
  static const auto op = handle<at::Tensor(const at::Tensor&, int64_t)>("softkern::log_softmax");
  return op.call(self, dim);
}

at::Tensor softmax_backward(const at::Tensor& grad_output, const at::Tensor& output, int64_t dim) {
  static const auto op =
      handle<at::Tensor(const at::Tensor&, const at::Tensor&, int64_t)>("softkern::softmax_backward");
  return op.call(grad_output, output, dim);
}

at::Tensor log_softmax_backward(const at::Tensor& grad_output, const at::Tensor& output, int64_t dim) {
  static const auto op =
      handle<at::Tensor(const at::Tensor&, const at::Tensor&, int64_t)>("softkern::log_softmax_backward");
  return op.call(grad_output, output, dim);
}

at::Tensor cross_entropy(const at::Tensor& self, const at::Tensor& target, const OptionalTensor& weight,
                         int64_t reduction, c10::SymInt ignore_index, double label_smoothing) {
  static const auto op = handle<at::Tensor(const at::Tensor&, const at::Tensor&, const OptionalTensor&,
                                           int64_t, c10::SymInt, double)>("softkern::cross_entropy");
  return op.call(self, target, weight, reduction, std::move(ignore_index), label_smoothing);
}

at::Tensor cross_entropy_(at::Tensor self, const at::Tensor& target, const OptionalTensor& weight,
                          int64_t reduction, c10::SymInt ignore_index, double label_smoothing) {
  static const auto op =
      handle<at::Tensor(at::Tensor, const at::Tensor&, const OptionalTensor&, int64_t, c10::SymInt, double)>(
          "softkern::cross_entropy_");
  return op.call(std::move(self), target, weight, reduction, std::move(ignore_index), label_smoothing);
}

std::tuple<at::Tensor, at::Tensor> cross_entropy_forward_(at::Tensor self, const at::Tensor& target,
                                                          const OptionalTensor& weight, int64_t reduction,
                                                          c10::SymInt ignore_index, double label_smoothing) {
  static const auto op =
      handle<std::tuple<at::Tensor, at::Tensor>(at::Tensor, const at::Tensor&, const OptionalTensor&, int64_t,
                                                c10::SymInt, double)>("softkern::cross_entropy_forward_");
  return op.call(std::move(self), target, weight, reduction, std::move(ignore_index), label_smoothing);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> cross_entropy_forward(
    const at::Tensor& self, const at::Tensor& target, const OptionalTensor& weight, int64_t reduction,
    c10::SymInt ignore_index, double label_smoothing, bool need_grad) {
  static const auto op = handle<std::tuple<at::Tensor, at::Tensor, at::Tensor>(
      const at::Tensor&, const at::Tensor&, const OptionalTensor&, int64_t, c10::SymInt, double, bool)>(
      "softkern::cross_entropy_forward");
  return op.call(self, target, weight, reduction, std::move(ignore_index), label_smoothing, need_grad);
}

at::Tensor cross_entropy_backward(const at::Tensor& grad_output, const at::Tensor& grad,
                                  const at::Tensor& grad_scale, const at::Tensor& target,
                                  c10::SymInt ignore_index) {
  static const auto op =
      handle<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                        c10::SymInt)>("softkern::cross_entropy_backward");
  return op.call(grad_output, grad, grad_scale, target, std::move(ignore_index));
}

void cross_entropy_backward_(const at::Tensor& grad_output, at::Tensor grad, const at::Tensor& grad_scale,
                             const at::Tensor& target, c10::SymInt ignore_index) {
  static const auto op =
      handle<void(const at::Tensor&, at::Tensor, const at::Tensor&, const at::Tensor&, c10::SymInt)>(
          "softkern::cross_entropy_backward_");
  op.call(grad_output, std::move(grad), grad_scale, target, std::move(ignore_index));
}

namespace {

/// What a backend implements.
constexpr const char* kKernelOps[] = {
    "softmax(Tensor self, int dim) -> Tensor",
    "log_softmax(Tensor self, int dim) -> Tensor",
    "softmax_backward(Tensor grad_output, Tensor output, int dim) -> Tensor",
    "log_softmax_backward(Tensor grad_output, Tensor output, int dim) -> Tensor",
    "cross_entropy_forward(Tensor self, Tensor target, Tensor? weight, int reduction, SymInt ignore_index, "
    "float label_smoothing, bool need_grad) -> (Tensor loss, Tensor grad, Tensor grad_scale)",
    "cross_entropy_forward_(Tensor(a!) self, Tensor target, Tensor? weight, int reduction, "
    "SymInt ignore_index, float label_smoothing) -> (Tensor loss, Tensor grad_scale)",
    "cross_entropy_backward(Tensor grad_output, Tensor grad, Tensor grad_scale, Tensor target, "
    "SymInt ignore_index) -> Tensor",
    "cross_entropy_backward_(Tensor grad_output, Tensor(a!) grad, Tensor grad_scale, Tensor target, "
    "SymInt ignore_index) -> ()",
};

}  // namespace

TORCH_LIBRARY(softkern, m) {
  for (const char* schema : kKernelOps) m.def(schema);
  m.def(
      "cross_entropy(Tensor self, Tensor target, Tensor? weight=None, int reduction=1, "
      "SymInt ignore_index=-100, float label_smoothing=0.0) -> Tensor");
  m.def(
      "cross_entropy_(Tensor(a!) self, Tensor target, Tensor? weight=None, int reduction=1, "
      "SymInt ignore_index=-100, float label_smoothing=0.0) -> Tensor");
}

// Kernels in Python: registered by softkern.triton, called by ops/triton.
TORCH_LIBRARY(softkern_triton, m) {
  for (const char* schema : kKernelOps) m.def(schema);
}

TORCH_LIBRARY_IMPL(softkern, CompositeExplicitAutograd, m) {
  m.impl("cross_entropy", &cross_entropy_below_autograd);
  m.impl("cross_entropy_", &cross_entropy_below_autograd_);
}

// As in route.cpp.
TORCH_LIBRARY_IMPL(softkern, CompositeImplicitAutogradNestedTensor, m) {
  m.impl("cross_entropy", &cross_entropy_below_autograd);
  m.impl("cross_entropy_", &cross_entropy_below_autograd_);
}

}  // namespace softkern
