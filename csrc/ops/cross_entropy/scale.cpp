// SPDX-License-Identifier: Apache-2.0
// Scales the gradient that the forward has stored by the upstream gradient: cross_entropy_backward and
// cross_entropy_backward_. Also the registry of every backend's kernels.
#include <torch/library.h>

#include <array>

#include "../ops.h"
#include "call.h"

namespace softkern {
namespace {

std::array<const CrossEntropyKernels*, kBackends>& kernels_by_backend() {
  static std::array<const CrossEntropyKernels*, kBackends> kernels{};
  return kernels;
}

/// out = grad * (grad_output * grad_scale); out may be grad.
void scale_gradient(const CrossEntropyKernels& kernels, const Tensor& grad_output, const Tensor& grad,
                    const Tensor& grad_scale, const Tensor& target, const c10::SymInt& ignore_index,
                    const Tensor& out) {
  if (grad.numel() == 0) return;
  const int64_t rows = layout_of(grad, class_dim(grad)).rows;
  TORCH_CHECK(grad_output.device() == grad.device() && takes_dtype(grad_output.scalar_type()) &&
                  (grad_output.numel() == 1 || grad_output.numel() == rows),
              "softkern::cross_entropy_backward: expected a floating-point grad_output on ", grad.device(),
              " with one element or one for each of ", rows, " rows, got ", grad_output.numel(), " of ",
              grad_output.scalar_type(), " on ", grad_output.device());
  kernels.scale(grad_output, grad, grad_scale, same_shape(grad, target) ? Tensor() : target,
                as_int(ignore_index), out);
}

Tensor backward(const Tensor& grad_output, const Tensor& grad, const Tensor& grad_scale, const Tensor& target,
                c10::SymInt ignore_index) {
  const CrossEntropyKernels& kernels = cross_entropy_kernels(grad.device());
  Tensor out = kernels.new_output(grad);
  scale_gradient(kernels, grad_output, grad.contiguous(), grad_scale, target, ignore_index, out);
  return out;
}

void backward_(const Tensor& grad_output, Tensor grad, const Tensor& grad_scale, const Tensor& target,
               c10::SymInt ignore_index) {
  TORCH_CHECK(
      is_walkable(grad, class_dim(grad)),
      "softkern::cross_entropy_backward_: expected a grad with strides that the kernels can walk, got ",
      grad.strides());
  scale_gradient(cross_entropy_kernels(grad.device()), grad_output, grad, grad_scale, target, ignore_index,
                 grad);
}

void register_backward(torch::Library& m) {
  m.impl(cross_entropy_backward.kName, TORCH_FN(&backward));
  m.impl(cross_entropy_backward_.kName, TORCH_FN(&backward_));
}

}  // namespace

bool set_cross_entropy_kernels(Backend backend, const CrossEntropyKernels& kernels) {
  kernels_by_backend()[static_cast<size_t>(backend)] = &kernels;
  return true;
}

const CrossEntropyKernels& cross_entropy_kernels(c10::Device device) {
  const CrossEntropyKernels* found = kernels_by_backend()[static_cast<size_t>(backend_for(device))];
  if (found == nullptr) raise_no_backend(device);
  return *found;
}

TORCH_LIBRARY_IMPL(softkern, CPU, m) { register_backward(m); }
TORCH_LIBRARY_IMPL(softkern, CUDA, m) { register_backward(m); }
TORCH_LIBRARY_IMPL(softkern, XPU, m) { register_backward(m); }

}  // namespace softkern
