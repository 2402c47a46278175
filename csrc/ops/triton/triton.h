// SPDX-License-Identifier: Apache-2.0
// The ops that a backend implements, computed by their namesakes in `softkern_triton`, whose kernels Python
// registers.
#pragma once

#include <c10/core/DispatchKeySet.h>

#include "../handle.h"
#include "../ops.h"

namespace softkern::triton {

using at::Tensor;

decltype(softkern::softmax) softmax;
decltype(softkern::log_softmax) log_softmax;
decltype(softkern::softmax_backward) softmax_backward;
decltype(softkern::log_softmax_backward) log_softmax_backward;
decltype(softkern::cross_entropy_forward) cross_entropy_forward;
decltype(softkern::cross_entropy_forward_) cross_entropy_forward_;
decltype(softkern::cross_entropy_backward) cross_entropy_backward;
decltype(softkern::cross_entropy_backward_) cross_entropy_backward_;

/// Where to redispatch to: the kernels of x's device. What is above them in the dispatcher has seen the op
/// that was called, and must not see this one as well.
inline c10::DispatchKeySet kernels_of(const Tensor& x) {
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
