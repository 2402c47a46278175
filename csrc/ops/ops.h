// SPDX-License-Identifier: Apache-2.0
// The ops as C++ functions, called through the dispatcher (so that every mode and backend sees them).
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

namespace softkern {

using OptionalTensor = std::optional<at::Tensor>;

at::Tensor softmax(const at::Tensor& self, int64_t dim);
at::Tensor log_softmax(const at::Tensor& self, int64_t dim);
at::Tensor softmax_backward(const at::Tensor& grad_output, const at::Tensor& output, int64_t dim);
at::Tensor log_softmax_backward(const at::Tensor& grad_output, const at::Tensor& output, int64_t dim);

at::Tensor cross_entropy(const at::Tensor& self, const at::Tensor& target, const OptionalTensor& weight,
                         int64_t reduction, c10::SymInt ignore_index, double label_smoothing);

/// The same; where a gradient is wanted, the logits' memory may be used for it.
at::Tensor cross_entropy_(at::Tensor self, const at::Tensor& target, const OptionalTensor& weight,
                          int64_t reduction, c10::SymInt ignore_index, double label_smoothing);

/// (loss, grad, grad_scale). With need_grad, the logits' gradient is
///   grad * (grad_output * grad_scale)       (a row of grad per element of grad_output for reduction none),
/// else grad and grad_scale are empty. grad_scale is 1 except for fp16, where grad is kept at a size that
/// uses the format's range: the 1/N of a mean would push it into the subnormals.
std::tuple<at::Tensor, at::Tensor, at::Tensor> cross_entropy_forward(
    const at::Tensor& self, const at::Tensor& target, const OptionalTensor& weight, int64_t reduction,
    c10::SymInt ignore_index, double label_smoothing, bool need_grad);

/// (loss, grad_scale); the gradient is written over self.
std::tuple<at::Tensor, at::Tensor> cross_entropy_forward_(at::Tensor self, const at::Tensor& target,
                                                          const OptionalTensor& weight, int64_t reduction,
                                                          c10::SymInt ignore_index, double label_smoothing);

at::Tensor cross_entropy_backward(const at::Tensor& grad_output, const at::Tensor& grad,
                                  const at::Tensor& grad_scale, const at::Tensor& target,
                                  c10::SymInt ignore_index);

/// The same in the memory of grad.
void cross_entropy_backward_(const at::Tensor& grad_output, at::Tensor grad, const at::Tensor& grad_scale,
                             const at::Tensor& target, c10::SymInt ignore_index);

}  // namespace softkern
