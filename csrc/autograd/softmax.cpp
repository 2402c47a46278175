// SPDX-License-Identifier: Apache-2.0
// softmax and log_softmax above the kernels in the dispatcher: autograd, functorch, autocast.
#include <ATen/autocast_mode.h>

#include "../ops/checks.h"
#include "../ops/onnx.h"
#include "output_node.h"

namespace softkern {
namespace {

template <class Op>
Tensor forward_autograd(const Tensor& self, int64_t dim) {
  if (is_for_onnx(self)) return Op::torchs(self, dim);
  if (!takes_tensor(self) || wants_composite(self)) return Op::composite(self, dim);
  const bool needs_grad = torch::autograd::compute_requires_grad(self);
  Tensor output = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return Op::forward(self, dim);
  }();
  if (needs_grad) set_output_history<Op>(output, dim, torch::autograd::collect_next_edges(self));
  return output;
}

/// Registered at the keys of devices. Inference tensors skip autograd and its checks, so they are checked
/// here.
template <class Op>
Tensor forward_on_device(const Tensor& self, int64_t dim) {
  return takes_tensor(self) ? Op::forward.route(self, dim) : Op::composite(self, dim);
}

/// On GPUs, autocast computes both softmaxes in float32. On the CPU, autocast does not change them.
template <class Op, c10::DeviceType kDevice, c10::DispatchKey kKey>
Tensor forward_autocast(const Tensor& self, int64_t dim) {
  const c10::impl::ExcludeDispatchKeyGuard guard(kKey);
  return Op::forward(at::autocast::cached_cast(at::kFloat, self, kDevice), dim);
}

void register_on_device(torch::Library& m) {
  for_each_softmax([&](auto op) {
    m.impl(op.forward.kName, &forward_on_device<decltype(op)>);
    m.impl(op.backward.kName, &op.backward.route);
  });
}

template <c10::DeviceType kDevice, c10::DispatchKey kKey>
void register_autocast(torch::Library& m) {
  for_each_softmax(
      [&](auto op) { m.impl(op.forward.kName, &forward_autocast<decltype(op), kDevice, kKey>); });
}

}  // namespace

TORCH_LIBRARY_IMPL(softkern, CPU, m) { register_on_device(m); }
TORCH_LIBRARY_IMPL(softkern, CUDA, m) { register_on_device(m); }
TORCH_LIBRARY_IMPL(softkern, XPU, m) { register_on_device(m); }

TORCH_LIBRARY_IMPL(softkern, CompositeExplicitAutograd, m) {
  // Below autograd, ATen computes the tensors of devices without kernels.
  for_each_softmax([&](auto op) { m.impl(op.forward.kName, &op.composite); });
}

// Nested tensors on any device, with and without autograd: CompositeExplicitAutograd does not cover them.
TORCH_LIBRARY_IMPL(softkern, CompositeImplicitAutogradNestedTensor, m) {
  for_each_softmax([&](auto op) { m.impl(op.forward.kName, &forward_on_device<decltype(op)>); });
}

TORCH_LIBRARY_IMPL(softkern, Autograd, m) {
  for_each_softmax([&](auto op) {
    m.impl(op.forward.kName, &forward_autograd<decltype(op)>);
    // The derivative of this op would be a second derivative. The Node of the forward computes it with ATen's
    // ops.
    m.impl(op.backward.kName, torch::autograd::autogradNotImplementedFallback());
  });
}

TORCH_LIBRARY_IMPL(softkern, FuncTorchBatched, m) {
  for_each_softmax([&](auto op) {
    m.impl(op.forward.kName, &op.composite);
    m.impl(op.backward.kName, &op.differentiable_backward);
  });
}

TORCH_LIBRARY_IMPL(softkern, AutocastCUDA, m) {
  register_autocast<c10::DeviceType::CUDA, c10::DispatchKey::AutocastCUDA>(m);
}

TORCH_LIBRARY_IMPL(softkern, AutocastXPU, m) {
  register_autocast<c10::DeviceType::XPU, c10::DispatchKey::AutocastXPU>(m);
}

}  // namespace softkern
