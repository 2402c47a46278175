// SPDX-License-Identifier: Apache-2.0
// ONNX has torch's ops and not softkern's: what is exported to it holds these.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>

namespace softkern {

/// Whether a call with this tensor is traced by one of torch's exporters to ONNX. The old one traces plain
/// tensors, the new one tensors that Python stands in for; others are not asked about.
bool is_for_onnx(const at::Tensor& x);

/// How it is found out whether such an export is going on.
void set_onnx_probe(std::function<bool()> probe);

/// torch's loss, of index dtypes that the kernels take and torch doesn't as well.
at::Tensor cross_entropy_for_onnx(const at::Tensor& self, const at::Tensor& target,
                                  const std::optional<at::Tensor>& weight, int64_t reduction,
                                  c10::SymInt ignore_index, double label_smoothing);

}  // namespace softkern
