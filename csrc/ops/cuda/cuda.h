// SPDX-License-Identifier: Apache-2.0
// The ops that a backend implements, computed by the CUDA kernels.
#pragma once

#include "../ops.h"

namespace softkern::cuda {

using at::Tensor;

decltype(softkern::softmax) softmax;
decltype(softkern::log_softmax) log_softmax;
decltype(softkern::softmax_backward) softmax_backward;
decltype(softkern::log_softmax_backward) log_softmax_backward;
decltype(softkern::cross_entropy_forward) cross_entropy_forward;
decltype(softkern::cross_entropy_forward_) cross_entropy_forward_;
decltype(softkern::cross_entropy_backward) cross_entropy_backward;
decltype(softkern::cross_entropy_backward_) cross_entropy_backward_;

}  // namespace softkern::cuda
