// SPDX-License-Identifier: Apache-2.0
// The ops of the library `softkern_triton`, whose kernels Python registers (softkern.triton): the softmaxes,
// with the schemas of the same ops in `softkern`, and the steps of cross_entropy and row_losses.
#pragma once

#include "../ops.h"

namespace softkern::triton {

/// The total weight of the targets that are not ignored, in float64, and its reciprocal in the dtype of
/// `reciprocal`.
SOFTKERN_OP(softkern_triton, target_weight, 0,
            "(Tensor target, Tensor? weight, int classes, int ignore_index, Tensor(a!) sum, "
            "Tensor(b!) reciprocal) -> ()",
            void(const Tensor& target, const OptionalTensor& weight, int64_t classes, int64_t ignore_index,
                 Tensor sum, Tensor reciprocal));

/// The losses of the rows and, if `grad` is given, their gradients times `factor`.
SOFTKERN_OP(softkern_triton, cross_entropy_rows, 0,
            "(Tensor self, Tensor target, Tensor? weight" SOFTKERN_OPTIONS_SCHEMA
            ", float factor, Tensor? factor_on_device, Tensor(a!) losses, Tensor(b!)? grad) -> ()",
            void(const Tensor& self, const Tensor& target, const OptionalTensor& weight,
                 const CrossEntropyOptions& options, double factor, const OptionalTensor& factor_on_device,
                 Tensor losses, OptionalTensor grad));

/// Writes the results that are given and, if `grad` is given, the gradient for the upstream gradients
/// (RowGradients in ops/row_losses/call.h). `indices`: one class index a row, or (rows, K) of them; `first`,
/// `whole`: RowCall's.
SOFTKERN_OP(softkern_triton, row_losses, 0,
            "(Tensor self, Tensor? indices, Tensor? target_probs, Tensor? probabilities, Tensor? weight, "
            "Tensor? row_weight" SOFTKERN_ROW_OPTIONS_SCHEMA
            ", int first, Tensor? whole, float factor, Tensor? factor_on_device, Tensor? grad_loss, "
            "Tensor? grad_log_prob, Tensor? grad_lse, Tensor? grad_entropy, Tensor(a!)? loss, "
            "Tensor(b!)? log_prob, Tensor(c!)? lse, Tensor(d!)? entropy, Tensor(e!)? argmax, "
            "Tensor(f!)? correct, Tensor(g!)? parts, Tensor(h!)? hot_z, Tensor(i!)? grad) -> ()",
            void(const Tensor& self, const OptionalTensor& indices, const OptionalTensor& target_probs,
                 const OptionalTensor& probabilities, const OptionalTensor& weight,
                 const OptionalTensor& row_weight, const RowOptions& options, int64_t first,
                 const OptionalTensor& whole, double factor, const OptionalTensor& factor_on_device,
                 const OptionalTensor& grad_loss, const OptionalTensor& grad_log_prob,
                 const OptionalTensor& grad_lse, const OptionalTensor& grad_entropy, OptionalTensor loss,
                 OptionalTensor log_prob, OptionalTensor lse, OptionalTensor entropy, OptionalTensor argmax,
                 OptionalTensor correct, OptionalTensor parts, OptionalTensor hot_z, OptionalTensor grad));

/// Merges the numbers of parts of rows, (kPartNumbers, parts, rows), and writes the results that are given.
/// `hot_z`: of whole rows, with several indices a row; `indices`: as in row_losses; `merged`: (kPartNumbers,
/// rows).
SOFTKERN_OP(softkern_triton, merge_rows, 0,
            "(Tensor parts, Tensor? hot_z, Tensor? indices, Tensor? target_probs, Tensor? weight, "
            "Tensor? row_weight" SOFTKERN_ROW_OPTIONS_SCHEMA
            ", Tensor(a!)? loss, Tensor(b!)? log_prob, Tensor(c!)? lse, Tensor(d!)? entropy, "
            "Tensor(e!)? merged) -> ()",
            void(const Tensor& parts, const OptionalTensor& hot_z, const OptionalTensor& indices,
                 const OptionalTensor& target_probs, const OptionalTensor& weight,
                 const OptionalTensor& row_weight, const RowOptions& options, OptionalTensor loss,
                 OptionalTensor log_prob, OptionalTensor lse, OptionalTensor entropy, OptionalTensor merged));

SOFTKERN_OP(softkern_triton, reduce_losses, 0,
            "(Tensor losses, float divisor, Tensor? divisor_on_device, float storage, "
            "Tensor? storage_on_device, Tensor(a!) loss, Tensor(b!)? grad_scale) -> ()",
            void(const Tensor& losses, double divisor, const OptionalTensor& divisor_on_device,
                 double storage, const OptionalTensor& storage_on_device, Tensor loss,
                 OptionalTensor grad_scale));

/// out = grad * (grad_output * grad_scale). `target` has the class indices, whose ignored rows stay zeros.
SOFTKERN_OP(softkern_triton, scale_gradient, 1,
            "(Tensor grad_output, Tensor grad, Tensor grad_scale, Tensor? target, int ignore_index, "
            "Tensor(a!) out) -> ()",
            void(const Tensor& grad_output, const Tensor& grad, const Tensor& grad_scale,
                 const OptionalTensor& target, int64_t ignore_index, Tensor out));

/// The dispatch key of a device's kernels, to redispatch to. The keys above it have handled the op that was
/// called, and must not see this op as well.
inline c10::DispatchKeySet kernels_of(c10::Device device) {
  switch (device.type()) {
    case c10::DeviceType::CUDA:
      return c10::DispatchKeySet(c10::DispatchKey::CUDA);
    case c10::DeviceType::XPU:
      return c10::DispatchKeySet(c10::DispatchKey::XPU);
    default:
      return c10::DispatchKeySet(c10::DispatchKey::CPU);
  }
}

/// Lets the op of the same name in `softkern_triton` compute `op`.
template <class Tag, class R, class... A>
bool computed_by_namesake(const Op<Tag, R(A...)>& op) {
  return op.computed_by(Backend::kTriton, [](A... a) -> R {
    const c10::Device device = Op<Tag, R(A...)>::device_of(a...);
    return in_triton(Op<Tag, R(A...)>()).redispatch(kernels_of(device), static_cast<A&&>(a)...);
  });
}

}  // namespace softkern::triton
