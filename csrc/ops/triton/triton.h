// SPDX-License-Identifier: Apache-2.0
// The ops whose kernels Python registers (softkern.triton), as `softkern_triton::`: the softmaxes, with the
// schemas of their namesakes in `softkern::`, and the steps of cross_entropy.
#pragma once

#include "../ops.h"

namespace softkern::triton {

/// The weight of the targets that count, in float64, and its reciprocal in `dtype`'s dtype.
SOFTKERN_OP(softkern_triton, target_weight, 0,
            "(Tensor target, Tensor? weight, int classes, int ignore_index, Tensor(a!) sum, "
            "Tensor(b!) reciprocal) -> ()",
            void(const Tensor& target, const OptionalTensor& weight, int64_t classes, int64_t ignore_index,
                 Tensor sum, Tensor reciprocal));

/// Losses of rows, and gradients times `factor` where `grad` is given.
SOFTKERN_OP(softkern_triton, cross_entropy_rows, 0,
            "(Tensor self, Tensor target, Tensor? weight" SOFTKERN_OPTIONS_SCHEMA
            ", float factor, Tensor? factor_on_device, Tensor(a!) losses, Tensor(b!)? grad) -> ()",
            void(const Tensor& self, const Tensor& target, const OptionalTensor& weight,
                 const CrossEntropyOptions& options, double factor, const OptionalTensor& factor_on_device,
                 Tensor losses, OptionalTensor grad));

SOFTKERN_OP(softkern_triton, reduce_losses, 0,
            "(Tensor losses, float divisor, Tensor? divisor_on_device, float storage, "
            "Tensor? storage_on_device, Tensor(a!) loss, Tensor(b!)? grad_scale) -> ()",
            void(const Tensor& losses, double divisor, const OptionalTensor& divisor_on_device,
                 double storage, const OptionalTensor& storage_on_device, Tensor loss,
                 OptionalTensor grad_scale));

/// out = grad (grad_output grad_scale); `target`: class indices, whose ignored rows stay zeros.
SOFTKERN_OP(softkern_triton, scale_gradient, 1,
            "(Tensor grad_output, Tensor grad, Tensor grad_scale, Tensor? target, int ignore_index, "
            "Tensor(a!) out) -> ()",
            void(const Tensor& grad_output, const Tensor& grad, const Tensor& grad_scale,
                 const OptionalTensor& target, int64_t ignore_index, Tensor out));

/// Where to redispatch to: the kernels of a device. What is above them in the dispatcher has seen the op that
/// was called, and must not see this one as well.
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

/// `op` by its namesake.
template <class Tag, class R, class... A>
bool computed_by_namesake(const Op<Tag, R(A...)>& op) {
  return op.computed_by(Backend::kTriton, [](A... a) -> R {
    const c10::Device device = Op<Tag, R(A...)>::device_of(a...);
    return in_triton(Op<Tag, R(A...)>()).redispatch(kernels_of(device), static_cast<A&&>(a)...);
  });
}

}  // namespace softkern::triton
