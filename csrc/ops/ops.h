// SPDX-License-Identifier: Apache-2.0
// The ops: their names, schemas and signatures, and which of them a backend implements.
#pragma once

#include "op.h"

namespace softkern {

using at::Tensor;

SOFTKERN_OP(softkern, softmax, 0, "(Tensor self, int dim) -> Tensor",
            Tensor(const Tensor& self, int64_t dim));
SOFTKERN_OP(softkern, log_softmax, 0, "(Tensor self, int dim) -> Tensor",
            Tensor(const Tensor& self, int64_t dim));
SOFTKERN_OP(softkern, softmax_backward, 1, "(Tensor grad_output, Tensor output, int dim) -> Tensor",
            Tensor(const Tensor& grad_output, const Tensor& output, int64_t dim));
SOFTKERN_OP(softkern, log_softmax_backward, 1, "(Tensor grad_output, Tensor output, int dim) -> Tensor",
            Tensor(const Tensor& grad_output, const Tensor& output, int64_t dim));

SOFTKERN_OP(softkern, cross_entropy, 0,
            "(Tensor self, Tensor target, Tensor? weight=None" SOFTKERN_OPTIONS_SCHEMA_WITH_DEFAULTS
            ") -> Tensor",
            Tensor(const Tensor& self, const Tensor& target, const OptionalTensor& weight,
                   const SymCrossEntropyOptions& options));

/// As cross_entropy, but if the logits need a gradient, it may be written over them.
SOFTKERN_OP(softkern, cross_entropy_, 0,
            "(Tensor(a!) self, Tensor target, Tensor? weight=None" SOFTKERN_OPTIONS_SCHEMA_WITH_DEFAULTS
            ") -> Tensor",
            Tensor(Tensor self, const Tensor& target, const OptionalTensor& weight,
                   const SymCrossEntropyOptions& options));

/// Returns (loss, grad, grad_scale). With need_grad, the gradient of the logits is
///   grad * (grad_output * grad_scale)       (without a reduction, each row has its element of grad_output),
/// otherwise grad and grad_scale are empty. grad_scale is 1 except for float16. There, grad is stored at a
/// scale that uses the range of the format: the 1/N of a mean would make it subnormal.
SOFTKERN_OP(softkern, cross_entropy_forward, 0,
            "(Tensor self, Tensor target, Tensor? weight" SOFTKERN_OPTIONS_SCHEMA
            ", bool need_grad) -> (Tensor loss, Tensor grad, Tensor grad_scale)",
            std::tuple<Tensor, Tensor, Tensor>(const Tensor& self, const Tensor& target,
                                               const OptionalTensor& weight,
                                               const SymCrossEntropyOptions& options, bool need_grad));

/// Returns (loss, grad_scale). The gradient is written over self.
SOFTKERN_OP(softkern, cross_entropy_forward_, 0,
            "(Tensor(a!) self, Tensor target, Tensor? weight" SOFTKERN_OPTIONS_SCHEMA
            ") -> (Tensor loss, Tensor grad_scale)",
            std::tuple<Tensor, Tensor>(Tensor self, const Tensor& target, const OptionalTensor& weight,
                                       const SymCrossEntropyOptions& options));

SOFTKERN_OP(
    softkern, cross_entropy_backward, 1,
    "(Tensor grad_output, Tensor grad, Tensor grad_scale, Tensor target, SymInt ignore_index) -> Tensor",
    Tensor(const Tensor& grad_output, const Tensor& grad, const Tensor& grad_scale, const Tensor& target,
           c10::SymInt ignore_index));

/// As cross_entropy_backward, but the result is written over grad.
SOFTKERN_OP(
    softkern, cross_entropy_backward_, 1,
    "(Tensor grad_output, Tensor(a!) grad, Tensor grad_scale, Tensor target, SymInt ignore_index) -> ()",
    void(const Tensor& grad_output, Tensor grad, const Tensor& grad_scale, const Tensor& target,
         c10::SymInt ignore_index));

/// Calls f(op) for the ops that a backend implements as one function each (Op::computed_by).
template <class F>
void for_each_softmax_op(F f) {
  f(softmax), f(log_softmax), f(softmax_backward), f(log_softmax_backward);
}
/// Calls f(op) for all ops.
template <class F>
void for_each_op(F f) {
  for_each_softmax_op(f);
  f(cross_entropy), f(cross_entropy_), f(cross_entropy_forward), f(cross_entropy_forward_);
  f(cross_entropy_backward), f(cross_entropy_backward_);
}

}  // namespace softkern
