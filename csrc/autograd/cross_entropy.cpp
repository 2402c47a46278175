// SPDX-License-Identifier: Apache-2.0
// cross_entropy above the kernels in the dispatcher: autograd, functorch, autocast.
#include <ATen/autocast_mode.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/graph_task.h>

#include <limits>

#include "../ops/checks.h"
#include "../ops/fallback.h"
#include "../ops/ops.h"
#include "node.h"

namespace softkern {
namespace {

struct CrossEntropyCall {
  int64_t reduction = kMean;
  int64_t ignore_index = -100;
  double label_smoothing = 0;
  bool in_place = false;  // grad is the memory of the logits
};

/// The logits' gradient in differentiable ATen ops: g (A p - a), with the names of the kernels.
Tensor differentiable_gradient(const Tensor& grad_output, const Tensor& logits, const Tensor& target,
                               const Tensor& weight, const CrossEntropyCall& call) {
  const int64_t dim = class_dim(logits);
  const at::ScalarType compute = logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const bool indices = !same_shape(logits, target);
  Tensor x = logits.to(compute);  // (N, C, d...)
  Tensor w = x.new_ones(1);
  if (weight.defined()) {
    at::SymDimVector shape(static_cast<size_t>(x.dim()), 1);
    shape[static_cast<size_t>(dim)] = weight.sym_size(0);
    w = weight.to(compute).view_symint(shape);  // (1, C, 1...)
  }
  const double share =
      call.label_smoothing / static_cast<double>(x.sym_size(dim).guard_int(__FILE__, __LINE__));
  Tensor a;
  Tensor one_hot;  // (N, C, d...)
  Tensor counts;   // (N, 1, d...): rows that are not ignored
  if (indices) {
    const Tensor index = target.to(at::kLong).unsqueeze(dim);  // (N, 1, d...)
    counts = index.ne(call.ignore_index);
    // Masked before the softmax: the second derivative of a NaN row would be NaN behind any later mask.
    x = at::where(counts, x, at::zeros({}, x.options()));
    one_hot = at::zeros_like(x).scatter(dim, index.masked_fill(counts.logical_not(), 0), 1);
    a = (one_hot * (1 - call.label_smoothing) + share) * w;
  } else {
    a = (target.to(compute) * (1 - call.label_smoothing) + share) * w;
  }
  const Tensor total = a.sum(dim, /*keepdim=*/true);
  Tensor g = grad_output.to(compute);
  if (call.reduction == kNone) {
    g = g.unsqueeze(dim);
  } else if (call.reduction == kMean) {
    if (indices) {
      const Tensor weights = one_hot * w * counts;
      const Tensor nan = x.new_full({}, std::numeric_limits<double>::quiet_NaN());
      g = g / at::where(weights.ne(0).any(), weights.sum(), nan);  // as the kernels: no weight, no mean
    } else {
      g = g / static_cast<double>((x.sym_numel() / x.sym_size(dim)).guard_int(__FILE__, __LINE__));
    }
  }
  Tensor result = g * (total * at::softmax(x, dim) - a);
  if (indices) result = at::where(counts, result, at::zeros({}, result.options()));
  return result.to(logits.scalar_type());
}

struct CrossEntropyNode : Node {
  SavedVariable grad;  // from the forward
  SavedVariable grad_scale;
  SavedVariable logits;  // for double backward
  SavedVariable target;
  SavedVariable weight;
  CrossEntropyCall call;

  std::string name() const override { return "SoftkernCrossEntropyBackward"; }
  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    grad.reset_data();
    grad_scale.reset_data();
    logits.reset_data();
    target.reset_data();
    weight.reset_data();
  }
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Tensor& g = grads[0];
    if (!g.defined() || !task_should_compute_output(0)) return {Tensor()};
    if (at::GradMode::is_enabled()) {
      return {differentiable_gradient(g, logits.unpack(), target.unpack(), weight.unpack(), call)};
    }
    Tensor buffer = grad.unpack();
    const Tensor scale = grad_scale.unpack();
    const Tensor y = target.unpack();
    const at::AutoDispatchBelowADInplaceOrView guard;
    if (is_plain(g) && is_plain(buffer) && !torch::autograd::get_current_graph_task_keep_graph()) {
      grad.reset_data();
      // Only memory that nobody else can see is overwritten, or was allowed to be: saved-tensor hooks may
      // have kept it.
      if (call.in_place ||
          (buffer.use_count() == 1 && buffer.storage().use_count() == 1 && buffer.is_contiguous())) {
        cross_entropy_backward_(g, buffer, scale, y, call.ignore_index);
        return {buffer};
      }
    }
    return {cross_entropy_backward(g, buffer, scale, y, call.ignore_index)};
  }
  // Compiled autograd takes no second derivatives. What they alone would need is left out: the logits, which
  // may have been modified since, in place by the loss itself.
  void compiled_args(CompiledNodeArgs& args) const override {
    args.collect(grad, false);
    args.collect(grad_scale, false);
    args.collect(target, false);
    args.collect(call.reduction);
    args.collect(call.ignore_index);
    args.collect(call.label_smoothing);
    args.collect(call.in_place);
  }
  variable_list apply_with_saved(const variable_list& grads, SwapSavedVariables& saved) override {
    for (SavedVariable* v : {&grad, &grad_scale, &target}) saved.before(*v);
    variable_list result = apply(variable_list(grads));
    for (SavedVariable* v : {&grad, &grad_scale, &target}) saved.after(*v);
    return result;
  }
};

Tensor with_history(const Tensor& self, const Tensor& target, const OptionalTensor& weight, int64_t reduction,
                    c10::SymInt ignore_index, double label_smoothing, bool in_place) {
  const Tensor w = weight.has_value() ? *weight : Tensor();
  if (wants_composite(self) || wants_composite(target) || wants_composite(w) ||
      !takes_cross_entropy(self, target, weight, reduction, ignore_index, label_smoothing)) {
    return cross_entropy_by_aten(self, target, weight, reduction, std::move(ignore_index), label_smoothing);
  }
  const bool needs_grad = torch::autograd::compute_requires_grad(self);
  if (!needs_grad) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return cross_entropy(self, target, weight, reduction, std::move(ignore_index), label_smoothing);
  }
  auto node = make_node<CrossEntropyNode>();
  node->set_next_edges(torch::autograd::collect_next_edges(self));
  node->logits = SavedVariable(self, false);
  node->target = SavedVariable(target, false);
  node->weight = SavedVariable(w, false);
  node->call = {reduction, ignore_index.guard_int(__FILE__, __LINE__), label_smoothing, in_place};
  Tensor loss, grad, grad_scale;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    if (in_place) {
      std::tie(loss, grad_scale) =
          cross_entropy_forward_(self, target, weight, reduction, ignore_index, label_smoothing);
    } else {
      std::tie(loss, grad, grad_scale) =
          cross_entropy_forward(self, target, weight, reduction, ignore_index, label_smoothing, true);
    }
  }
  if (in_place) {
    // Whoever saved the logits, this node's double backward too, finds them modified. The gradient has their
    // version counter: modified in turn before the backward, they are no gradient any more.
    torch::autograd::impl::bump_version(self);
    grad = self.detach();
  }
  node->grad = SavedVariable(grad, false);
  node->grad_scale = SavedVariable(grad_scale, false);
  torch::autograd::set_history(loss, node);
  return loss;
}

Tensor cross_entropy_autograd(const Tensor& self, const Tensor& target, const OptionalTensor& weight,
                              int64_t reduction, c10::SymInt ignore_index, double label_smoothing) {
  return with_history(self, target, weight, reduction, std::move(ignore_index), label_smoothing, false);
}

Tensor cross_entropy_autograd_(Tensor self, const Tensor& target, const OptionalTensor& weight,
                               int64_t reduction, c10::SymInt ignore_index, double label_smoothing) {
  const bool in_place =
      torch::autograd::compute_requires_grad(self) && is_plain(self) && !wants_composite(self);
  if (in_place) {
    // As torch's own in-place operations: no leaf that requires a gradient, no view of one.
    torch::autograd::check_inplace(self, /*requires_grad=*/true);
    at::assert_no_internal_overlap(self);
  }
  return with_history(self, target, weight, reduction, std::move(ignore_index), label_smoothing,
                      in_place && has_simple_strides(self));
}

Tensor cross_entropy_batched(const Tensor& self, const Tensor& target, const OptionalTensor& weight,
                             int64_t reduction, c10::SymInt ignore_index, double label_smoothing) {
  return cross_entropy_by_aten(self, target, weight, reduction, std::move(ignore_index), label_smoothing);
}

/// torch.func.functionalize: what is written to would be the functional tensor's present value.
Tensor cross_entropy_functional_(Tensor self, const Tensor& target, const OptionalTensor& weight,
                                 int64_t reduction, c10::SymInt ignore_index, double label_smoothing) {
  return cross_entropy(self, target, weight, reduction, std::move(ignore_index), label_smoothing);
}

/// vmap over upstream gradients (is_grads_batched, vectorised Jacobians): the scaling in ATen's ops.
Tensor cross_entropy_backward_batched(const Tensor& grad_output, const Tensor& grad, const Tensor& grad_scale,
                                      const Tensor& target, c10::SymInt ignore_index) {
  const int64_t dim = class_dim(grad);
  Tensor factor = grad_output.to(grad_scale.scalar_type()).mul(grad_scale);
  if (factor.dim() > 0) factor = factor.unsqueeze(dim);
  const Tensor scaled = grad.to(grad_scale.scalar_type()).mul(factor).to(grad.scalar_type());
  if (target.dim() == grad.dim()) return scaled;
  const Tensor ignored = target.to(at::kLong).eq(ignore_index.guard_int(__FILE__, __LINE__)).unsqueeze(dim);
  return scaled.masked_fill(ignored, 0);
}

Tensor cross_entropy_batched_(Tensor self, const Tensor& target, const OptionalTensor& weight,
                              int64_t reduction, c10::SymInt ignore_index, double label_smoothing) {
  return cross_entropy_batched(self, target, weight, reduction, std::move(ignore_index), label_smoothing);
}

/// As torch's own rule on all devices: cross_entropy runs in float32.
template <c10::DeviceType kDevice, c10::DispatchKey kKey>
Tensor cross_entropy_autocast(const Tensor& self, const Tensor& target, const OptionalTensor& weight,
                              int64_t reduction, c10::SymInt ignore_index, double label_smoothing) {
  const c10::impl::ExcludeDispatchKeyGuard guard(kKey);
  const auto cast = [](const Tensor& x) { return at::autocast::cached_cast(at::kFloat, x, kDevice); };
  const OptionalTensor w = weight.has_value() && weight->defined() ? OptionalTensor(cast(*weight)) : weight;
  return cross_entropy(cast(self), cast(target), w, reduction, std::move(ignore_index), label_smoothing);
}

/// A copy in float32 may be autocast's own, kept for the next op: only logits that need none are overwritten.
template <c10::DeviceType kDevice, c10::DispatchKey kKey>
Tensor cross_entropy_autocast_(Tensor self, const Tensor& target, const OptionalTensor& weight,
                               int64_t reduction, c10::SymInt ignore_index, double label_smoothing) {
  if (self.scalar_type() != at::kFloat) {
    return cross_entropy_autocast<kDevice, kKey>(self, target, weight, reduction, std::move(ignore_index),
                                                 label_smoothing);
  }
  const c10::impl::ExcludeDispatchKeyGuard guard(kKey);
  return cross_entropy_(self, target, weight, reduction, std::move(ignore_index), label_smoothing);
}

template <c10::DeviceType kDevice, c10::DispatchKey kKey>
void register_autocast(torch::Library& m) {
  m.impl("cross_entropy", &cross_entropy_autocast<kDevice, kKey>);
  m.impl("cross_entropy_", &cross_entropy_autocast_<kDevice, kKey>);
}

}  // namespace

TORCH_LIBRARY_IMPL(softkern, Autograd, m) {
  m.impl("cross_entropy", &cross_entropy_autograd);
  m.impl("cross_entropy_", &cross_entropy_autograd_);
  // Differentiating these would be a second derivative, which the op above takes another way.
  for (const char* name : {"cross_entropy_forward", "cross_entropy_forward_", "cross_entropy_backward",
                           "cross_entropy_backward_"}) {
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
  }
}

TORCH_LIBRARY_IMPL(softkern, FuncTorchBatched, m) {
  m.impl("cross_entropy", &cross_entropy_batched);
  m.impl("cross_entropy_", &cross_entropy_batched_);
  m.impl("cross_entropy_backward", &cross_entropy_backward_batched);
}

TORCH_LIBRARY_IMPL(softkern, Functionalize, m) { m.impl("cross_entropy_", &cross_entropy_functional_); }

TORCH_LIBRARY_IMPL(softkern, Batched, m) {
  m.impl("cross_entropy_backward", &cross_entropy_backward_batched);
}

TORCH_LIBRARY_IMPL(softkern, AutocastCPU, m) {
  register_autocast<c10::DeviceType::CPU, c10::DispatchKey::AutocastCPU>(m);
}

TORCH_LIBRARY_IMPL(softkern, AutocastCUDA, m) {
  register_autocast<c10::DeviceType::CUDA, c10::DispatchKey::AutocastCUDA>(m);
}

TORCH_LIBRARY_IMPL(softkern, AutocastXPU, m) {
  register_autocast<c10::DeviceType::XPU, c10::DispatchKey::AutocastXPU>(m);
}

}  // namespace softkern
