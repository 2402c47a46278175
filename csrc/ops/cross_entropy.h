// SPDX-License-Identifier: Apache-2.0
// What the glue of cross_entropy asks of tensors, the same for every backend with kernels of its own.
#pragma once

#include <ATen/MemoryOverlap.h>

#include "checks.h"
#include "rows.h"

namespace softkern {

inline int64_t as_int(const c10::SymInt& x) { return x.guard_int(__FILE__, __LINE__); }

/// Shape of class-index targets, and of the loss without a reduction.
inline at::DimVector target_sizes(const at::Tensor& logits) {
  at::DimVector sizes(logits.sizes());
  sizes.erase(sizes.begin() + class_dim(logits));
  return sizes;
}

/// Expanded gradients, as loss.sum() gives them, are one factor.
inline bool is_one_factor(const at::Tensor& grad_output) {
  for (int64_t i = 0; i < grad_output.dim(); ++i) {
    if (grad_output.size(i) != 1 && grad_output.stride(i) != 0) return false;
  }
  return true;
}

inline void check_writable_logits(const at::Tensor& self) {
  TORCH_CHECK(is_walkable(self, class_dim(self)) && at::has_internal_overlap(self) != at::MemOverlap::Yes,
              "softkern::cross_entropy_forward_: expected logits whose elements have memory of their own, in "
              "steps that the kernels can walk; got strides ",
              self.strides());
}

inline void check_writable_grad(const at::Tensor& grad) {
  TORCH_CHECK(
      is_walkable(grad, class_dim(grad)),
      "softkern::cross_entropy_backward_: expected a grad with strides that the kernels can walk, got ",
      grad.strides());
}

}  // namespace softkern
