// SPDX-License-Identifier: Apache-2.0
// ONNX exporters know torch's ops, but not softkern's. So an exported graph contains torch's ops.
#pragma once

#include <ATen/TracerMode.h>
#include <ATen/core/Tensor.h>

#include <functional>

namespace softkern {

/// Whether one of torch's exporters to ONNX is running. This calls Python, so don't ask for plain tensors
/// outside of a trace.
bool exports_to_onnx();

/// Whether the new ONNX exporter traces a call with this tensor. Its tensors have the Python dispatch key.
inline bool is_for_onnx(const at::Tensor& x) {
  return x.key_set().has(c10::DispatchKey::Python) && exports_to_onnx();
}

/// Whether the new or the old ONNX exporter traces a call with this tensor. The old one traces plain tensors,
/// above autograd.
inline bool is_traced_for_onnx(const at::Tensor& x) {
  return is_for_onnx(x) || (at::tracer::impl::is_dispatch_enabled() && exports_to_onnx());
}

/// Sets the function that says whether an export to ONNX is running.
void set_onnx_probe(std::function<bool()> probe);

}  // namespace softkern
