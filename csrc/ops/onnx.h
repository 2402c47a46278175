// SPDX-License-Identifier: Apache-2.0
// ONNX has torch's ops and not softkern's: what is exported to it holds these.
#pragma once

#include <ATen/TracerMode.h>
#include <ATen/core/Tensor.h>

#include <functional>

namespace softkern {

/// Whether one of torch's exporters to ONNX is at work. Asks Python: not for plain tensors.
bool exports_to_onnx();

/// Whether a call with this tensor is traced for ONNX by the new exporter, whose tensors Python stands in
/// for.
inline bool is_for_onnx(const at::Tensor& x) {
  return x.key_set().has(c10::DispatchKey::Python) && exports_to_onnx();
}

/// Whether it is traced for ONNX by the new exporter, or the old one, which traces plain tensors: above
/// autograd.
inline bool is_traced_for_onnx(const at::Tensor& x) {
  return is_for_onnx(x) || (at::tracer::impl::is_dispatch_enabled() && exports_to_onnx());
}

/// How it is found out whether such an export is going on.
void set_onnx_probe(std::function<bool()> probe);

}  // namespace softkern
