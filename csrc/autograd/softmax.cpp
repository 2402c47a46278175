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

/// GPUs' autocast computes both softmaxes in float32; CPU autocast leaves them alone.
template <class Op, c10::DeviceType kDevice, c10::DispatchKey kKey>
Tensor forward_autocast(const Tensor& self, int64_t dim) {
  const c10::impl::ExcludeDispatchKeyGuard guard(kKey);
  return Op::forward(at::autocast::cached_cast(at::kFloat, self, kDevice), dim);
}

template <c10::DeviceType kDevice, c10::DispatchKey kKey>
void register_softmax_autocast(torch::Library& m) {
  m.impl("softmax", &forward_autocast<SoftmaxOp, kDevice, kKey>);
  m.impl("log_softmax", &forward_autocast<LogSoftmaxOp, kDevice, kKey>);
}

}  // namespace

TORCH_LIBRARY_IMPL(softkern, CompositeExplicitAutograd, m) {
  // Below autograd, for tensors without kernels.
  m.impl("softmax", &SoftmaxOp::composite);
  m.impl("log_softmax", &LogSoftmaxOp::composite);
}

TORCH_LIBRARY_IMPL(softkern, Autograd, m) {
  m.impl("softmax", &forward_autograd<SoftmaxOp>);
  m.impl("log_softmax", &forward_autograd<LogSoftmaxOp>);
  // Differentiating these would be a second derivative, which the ops above take another way.
  m.impl("softmax_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("log_softmax_backward", torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(softkern, FuncTorchBatched, m) {
  m.impl("softmax", &SoftmaxOp::composite);
  m.impl("log_softmax", &LogSoftmaxOp::composite);
  m.impl("softmax_backward", &SoftmaxOp::differentiable_backward);
  m.impl("log_softmax_backward", &LogSoftmaxOp::differentiable_backward);
}

TORCH_LIBRARY_IMPL(softkern, AutocastCUDA, m) {
  register_softmax_autocast<c10::DeviceType::CUDA, c10::DispatchKey::AutocastCUDA>(m);
}

TORCH_LIBRARY_IMPL(softkern, AutocastXPU, m) {
  register_softmax_autocast<c10::DeviceType::XPU, c10::DispatchKey::AutocastXPU>(m);
}

}  // namespace softkern
