// SPDX-License-Identifier: Apache-2.0
// softmax and log_softmax above the kernels in the dispatcher: autograd, functorch, autocast.
#include <ATen/autocast_mode.h>
#include <ATen/ops/_log_softmax_backward_data.h>
#include <ATen/ops/_softmax_backward_data.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/softmax.h>

#include "../ops/checks.h"
#include "../ops/fallback.h"
#include "../ops/onnx.h"
#include "../ops/ops.h"
#include "node.h"

namespace softkern {
namespace {

struct SoftmaxOp {
  static constexpr const char* kName = "SoftkernSoftmaxBackward";
  static Tensor torchs(const Tensor& x, int64_t dim) { return at::softmax(x, dim); }
  static Tensor composite(const Tensor& x, int64_t dim) { return by_aten(torchs(x, dim)); }
  static Tensor forward(const Tensor& x, int64_t dim) { return softkern::softmax(x, dim); }
  static Tensor backward(const Tensor& g, const Tensor& y, int64_t dim) {
    return softkern::softmax_backward(g, y, dim);
  }
  static Tensor differentiable_backward(const Tensor& g, const Tensor& y, int64_t dim) {
    return at::_softmax_backward_data(g, y, dim, y.scalar_type());
  }
};

struct LogSoftmaxOp {
  static constexpr const char* kName = "SoftkernLogSoftmaxBackward";
  static Tensor torchs(const Tensor& x, int64_t dim) { return at::log_softmax(x, dim); }
  static Tensor composite(const Tensor& x, int64_t dim) { return by_aten(torchs(x, dim)); }
  static Tensor forward(const Tensor& x, int64_t dim) { return softkern::log_softmax(x, dim); }
  static Tensor backward(const Tensor& g, const Tensor& y, int64_t dim) {
    return softkern::log_softmax_backward(g, y, dim);
  }
  static Tensor differentiable_backward(const Tensor& g, const Tensor& y, int64_t dim) {
    return at::_log_softmax_backward_data(g, y, dim, y.scalar_type());
  }
};

template <class Op>
struct OutputNode : Node {
  SavedVariable output;
  int64_t dim = 0;

  std::string name() const override { return Op::kName; }
  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    output.reset_data();
  }
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Tensor& g = grads[0];
    if (!g.defined() || !task_should_compute_output(0)) return {Tensor()};
    const Tensor y = output.unpack(getptr());
    if (at::GradMode::is_enabled()) return {Op::differentiable_backward(g, y, dim)};
    const at::AutoDispatchBelowADInplaceOrView guard;
    return {Op::backward(g, y, dim)};
  }
  void compiled_args(CompiledNodeArgs& args) const override {
    args.collect(output, /*is_output=*/true);
    args.collect(dim);
  }
  variable_list apply_with_saved(const variable_list& grads, SwapSavedVariables& saved) override {
    saved.before(output);
    saved.before(dim);
    variable_list result = apply(variable_list(grads));
    saved.after(output);
    saved.after(dim);
    return result;
  }
};

template <class Op>
Tensor forward_autograd(const Tensor& self, int64_t dim) {
  if (is_for_onnx(self)) return Op::torchs(self, dim);
  if (!takes_tensor(self) || wants_composite(self)) return Op::composite(self, dim);
  const bool needs_grad = torch::autograd::compute_requires_grad(self);
  Tensor output = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return Op::forward(self, dim);
  }();
  if (needs_grad) {
    auto node = make_node<OutputNode<Op>>();
    node->set_next_edges(torch::autograd::collect_next_edges(self));
    node->dim = dim;
    torch::autograd::set_history(output, node);
    node->output = SavedVariable(output, /*is_output=*/true);
  }
  return output;
}

/// GPUs' autocast computes both softmaxes in float32; CPU autocast leaves them alone.
template <class Op, c10::DeviceType kDevice, c10::DispatchKey kKey>
Tensor forward_autocast(const Tensor& self, int64_t dim) {
  const c10::impl::ExcludeDispatchKeyGuard guard(kKey);
  return Op::forward(at::autocast::cached_cast(at::kFloat, self, kDevice), dim);
}

template <c10::DeviceType kDevice, c10::DispatchKey kKey>
void register_autocast(torch::Library& m) {
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
  register_autocast<c10::DeviceType::CUDA, c10::DispatchKey::AutocastCUDA>(m);
}

TORCH_LIBRARY_IMPL(softkern, AutocastXPU, m) {
  register_autocast<c10::DeviceType::XPU, c10::DispatchKey::AutocastXPU>(m);
}

}  // namespace softkern
