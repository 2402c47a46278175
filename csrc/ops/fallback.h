// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/cross_entropy_loss.h>

#include "checks.h"

namespace softkern {

/// Returns ATen's result, unless a backend was required by name: that one must not be replaced silently. The
/// argument is the result, so that ATen raises its own errors about bad arguments first.
inline at::Tensor by_aten(at::Tensor result) {
  const std::string named = required();
  TORCH_CHECK(
      named.empty(), "backend '", named,
      "' was asked for and does not compute these arguments (device, layout, dtypes, transforms); where "
      "the choice is softkern's, torch does");
  return result;
}

/// ATen's loss. Class indices are converted to int64 if the kernels take their dtype, since ATen does not
/// take all of these dtypes on every device. A target with as many dims as the logits has no class indices.
/// It keeps its dtype, because ATen's error message names it.
inline at::Tensor aten_cross_entropy(const at::Tensor& self, const at::Tensor& target,
                                     const std::optional<at::Tensor>& weight,
                                     const SymCrossEntropyOptions& options) {
  const bool narrow = takes_index_dtype(target.scalar_type()) && target.dim() != self.dim();
  return at::cross_entropy_loss_symint(self, narrow ? target.to(at::kLong) : target, weight,
                                       options.reduction, options.ignore_index, options.label_smoothing);
}

inline at::Tensor cross_entropy_by_aten(const at::Tensor& self, const at::Tensor& target,
                                        const std::optional<at::Tensor>& weight,
                                        const SymCrossEntropyOptions& options) {
  return by_aten(aten_cross_entropy(self, target, weight, options));
}

}  // namespace softkern
