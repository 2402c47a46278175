// SPDX-License-Identifier: Apache-2.0
// The ops that a backend implements, computed by their namesakes in `softkern_triton`, whose kernels Python
// registers. Tensors that Triton does not take go to ATen where an op has it; else they are refused.
#pragma once

#include <c10/core/DispatchKeySet.h>

#include "../backend.h"
#include "../handle.h"
#include "../ops.h"

namespace softkern::triton {

using at::Tensor;

Tensor softmax(const Tensor& self, int64_t dim);
Tensor log_softmax(const Tensor& self, int64_t dim);
Tensor softmax_backward(const Tensor& grad_output, const Tensor& output, int64_t dim);
Tensor log_softmax_backward(const Tensor& grad_output, const Tensor& output, int64_t dim);

std::tuple<Tensor, Tensor, Tensor> cross_entropy_forward(const Tensor& self, const Tensor& target,
                                                         const OptionalTensor& weight, int64_t reduction,
                                                         c10::SymInt ignore_index, double label_smoothing,
                                                         bool need_grad);
std::tuple<Tensor, Tensor> cross_entropy_forward_(Tensor self, const Tensor& target,
                                                  const OptionalTensor& weight, int64_t reduction,
                                                  c10::SymInt ignore_index, double label_smoothing);
Tensor cross_entropy_backward(const Tensor& grad_output, const Tensor& grad, const Tensor& grad_scale,
                              const Tensor& target, c10::SymInt ignore_index);
void cross_entropy_backward_(const Tensor& grad_output, Tensor grad, const Tensor& grad_scale,
                             const Tensor& target, c10::SymInt ignore_index);

/// Where to redispatch to: the kernels of x's device. What is above them in the dispatcher has seen the op
/// that was called, and must not see this one as well.
inline c10::DispatchKeySet kernels_of(const Tensor& x) {
  if (!computes_on(x.device().type())) {
    const std::string named = required();
    TORCH_CHECK(!named.empty(), "no backend of softkern computes tensors on ", x.device(),
                " here: softkern.backends() says why");
    TORCH_CHECK(false, "backend '", named, "' was asked for and does not compute tensors on ", x.device());
  }
  switch (x.device().type()) {
    case c10::DeviceType::CUDA:
      return c10::DispatchKeySet(c10::DispatchKey::CUDA);
    case c10::DeviceType::XPU:
      return c10::DispatchKeySet(c10::DispatchKey::XPU);
    default:
      return c10::DispatchKeySet(c10::DispatchKey::CPU);
  }
}

}  // namespace softkern::triton
