// SPDX-License-Identifier: Apache-2.0
// Which arguments the kernels take. ATen computes all others, or raises its own exception with its own text:
// a drop-in replacement must agree with torch on what is an error.
// The checks read only devices, dims, dtypes and symbolic sizes, so that fake tensors pass too. Sizes may
// depend on data that a tracer does not have (the rows that a mask selects). Therefore no comparison requires
// an answer, and sizes that must be equal are recorded as checks for the run, as ATen's own checks do.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymIntArrayRef.h>

#include "backend.h"
#include "options.h"

namespace softkern {

inline bool takes_dtype(at::ScalarType type) {
  return type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf;
}

inline bool takes_tensor(const at::Tensor& x) {
  return x.layout() == at::kStrided && takes_dtype(x.scalar_type()) && !x.is_nested() &&
         backend_for(x.device()) != Backend::kNone;
}

inline bool takes_index_dtype(at::ScalarType type) {
  return type == at::kLong || type == at::kInt || type == at::kByte;
}

inline int64_t class_dim(const at::Tensor& logits) { return logits.dim() == 1 ? 0 : 1; }

/// As in F.cross_entropy, targets of the same shape as the logits are class probabilities.
inline bool same_shape(const at::Tensor& a, const at::Tensor& b) {
  return a.dim() == b.dim() && TORCH_GUARD_OR_FALSE(c10::sym_equals(a.sym_sizes(), b.sym_sizes()));
}

/// Whether one stride walks all dims before the classes, and another one all dims after them. Then the
/// kernels can write gradients over the logits.
inline bool has_simple_strides(const at::Tensor& logits) {
  if (logits.numel() == 0) return true;
  const int64_t skip = class_dim(logits);
  int64_t next = -1;
  for (int64_t i = logits.dim() - 1; i >= 0; --i) {
    if (i == skip) {
      next = -1;
    } else if (logits.size(i) != 1) {
      if (next != -1 && logits.stride(i) != next) return false;
      next = logits.stride(i) * logits.size(i);
    }
  }
  return true;
}

inline bool indices_fit(const at::Tensor& logits, const at::Tensor& target) {
  if (!takes_index_dtype(target.scalar_type()) || target.dim() != logits.dim() - 1) return false;
  const int64_t skip = class_dim(logits);
  for (int64_t i = 0; i < target.dim(); ++i) {
    const c10::SymBool equal = target.sym_size(i).sym_eq(logits.sym_size(i < skip ? i : i + 1));
    if (!equal.expect_true(__FILE__, __LINE__)) return false;
  }
  return true;
}

inline bool takes_options(const SymCrossEntropyOptions& options) {
  return options.reduction >= kNone && options.reduction <= kSum && options.label_smoothing >= 0 &&
         options.label_smoothing <= 1;
}

inline bool takes_cross_entropy(const at::Tensor& logits, const at::Tensor& target,
                                const std::optional<at::Tensor>& weight,
                                const SymCrossEntropyOptions& options) {
  if (!takes_tensor(logits) || logits.dim() < 1 || target.layout() != at::kStrided ||
      target.device() != logits.device() || target.is_nested()) {
    return false;
  }
  if (!takes_options(options)) return false;
  const int64_t c = class_dim(logits);
  if (TORCH_GUARD_OR_FALSE(logits.sym_size(c).sym_eq(0))) return false;
  if (same_shape(logits, target)) {
    if (target.scalar_type() != logits.scalar_type() || options.ignore_index >= 0) return false;
  } else if (!indices_fit(logits, target) ||
             (weight.has_value() && weight->defined() && weight->requires_grad())) {
    return false;  // torch raises: the weights of class indices have no gradient
  }
  if (weight.has_value() && weight->defined()) {
    if (weight->is_nested() || weight->dim() != 1 || weight->scalar_type() != logits.scalar_type() ||
        weight->device() != logits.device() || weight->layout() != at::kStrided ||
        !weight->sym_size(0).sym_eq(logits.sym_size(c)).expect_true(__FILE__, __LINE__)) {
      return false;
    }
  }
  return true;
}

}  // namespace softkern
