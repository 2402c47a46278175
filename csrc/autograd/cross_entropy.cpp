// SPDX-License-Identifier: Apache-2.0
// cross_entropy above the kernels in the dispatcher: autograd, functorch, autocast.
#include <ATen/autocast_mode.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/graph_task.h>

#include "../ops/cross_entropy/call.h"
#include "../ops/onnx.h"
#include "cross_entropy_derivatives.h"

namespace softkern {
namespace {

struct CrossEntropyNode : SavingNode<CrossEntropyNode> {
  SavedVariable grad;  // from the forward; unset if the logits need no gradient
  SavedVariable grad_scale;
  SavedVariable target;
  SavedVariable weight;
  SavedVariable log_p;  // set if probabilities or weights need a gradient
  CrossEntropyOptions options;
  bool in_place = false;   // the gradient is in the memory of the logits
  bool has_graph = false;  // the gradient has a graph, so `grad` must not change

  std::string name() const override { return "SoftkernCrossEntropyBackward"; }
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Tensor& g = grads[0];
    variable_list result(num_outputs());
    if (!g.defined()) return result;
    const Tensor y = target.unpack();
    if (num_outputs() == 1) {
      if (task_should_compute_output(0)) result[0] = of_logits(g, y);
      return result;
    }
    const Tensor w = weight.unpack();
    // Probabilities or weights need a gradient. With create_graph, the gradient of the logits is
    // differentiable with respect to them too, and needs a graph.
    const bool graph = at::GradMode::is_enabled();
    const Tensor stored = log_p.unpack();
    const at::ScalarType compute = compute_type(stored);
    Tensor lp = stored.to(compute);
    const Masses masses(stored, y, w, options);
    const Tensor row = by_row(g, masses, options, compute);
    if (graph && task_should_compute_output(0)) {
      if (lp.is_same(stored)) lp = stored.detach();
      set_output_history<LogSoftmaxOp>(lp, masses.dim(), {next_edge(0)});
      result[0] = (row * masses.gradient(lp.exp())).to(stored.scalar_type());
    } else if (task_should_compute_output(0)) {
      result[0] = of_logits(g, y);
    }
    if (task_should_compute_output(1)) {
      result[1] = probability_gradient(row, lp, masses).to(y.scalar_type());
    }
    if (task_should_compute_output(2)) {
      result[2] = weight_gradient(row, lp, Masses(stored, y, Tensor(), options)).to(w.scalar_type());
    }
    return result;
  }
  void compiled_args(CompiledNodeArgs& args) const override {
    collect_saved(args);
    collect(args, options);
    args.collect(in_place);
  }

  static constexpr SavedVariable CrossEntropyNode::* kSaved[] = {
      &CrossEntropyNode::grad, &CrossEntropyNode::grad_scale, &CrossEntropyNode::target,
      &CrossEntropyNode::log_p, &CrossEntropyNode::weight};
  /// Excludes the weights if they need no gradient. Then only second derivatives could use them, which
  /// compiled autograd does not compute.
  size_t used() const { return std::size(kSaved) - (num_outputs() > 1 ? 0 : 1); }

 private:
  Tensor of_logits(const Tensor& g, const Tensor& y) {
    Tensor buffer = grad.unpack();
    const Tensor scale = grad_scale.unpack();
    // Only further derivatives need the weights. Otherwise they may have been modified since the forward.
    if (at::GradMode::is_enabled()) return with_graph(g, buffer, scale, y, weight.unpack());
    const at::AutoDispatchBelowADInplaceOrView guard;
    if (is_plain(g) && is_plain(buffer) && !torch::autograd::get_current_graph_task_keep_graph() &&
        !has_graph) {
      grad.reset_data();
      // Overwrites only memory that nothing else can see, or that the user allowed to overwrite (in_place).
      // Saved-tensor hooks may have kept a reference.
      if (in_place ||
          (buffer.use_count() == 1 && buffer.storage().use_count() == 1 && buffer.is_contiguous())) {
        cross_entropy_backward_(g, buffer, scale, y, options.ignore_index);
        return buffer;
      }
    }
    return cross_entropy_backward(g, buffer, scale, y, options.ignore_index);
  }
  Tensor with_graph(const Tensor& g, const Tensor& buffer, const Tensor& scale, const Tensor& y,
                    const Tensor& w) {
    const at::ScalarType compute = scale.scalar_type();
    if (!is_plain(g) || !is_plain(buffer)) {
      // Transforms and tracers record the history themselves, and only ATen's ops are differentiable for
      // them.
      const Masses masses(buffer, y, w, options);
      Tensor p;
      {
        const at::AutoGradMode no_graph(false);
        p = masses.probabilities(buffer.to(compute) * scale);
      }
      set_output_history<SoftmaxOp>(p, masses.dim(), {next_edge(0)});
      return (by_row(g, masses, options, compute) * masses.gradient(p)).to(buffer.scalar_type());
    }
    Tensor result;
    {
      const at::AutoDispatchBelowADInplaceOrView guard;
      result = cross_entropy_backward(g, buffer, scale, y, options.ignore_index);
    }
    auto node = make_node<CrossEntropyGradientNode>();
    node->set_next_edges(
        {g.requires_grad() ? torch::autograd::impl::gradient_edge(g) : torch::autograd::Edge(),
         next_edge(0)});
    node->grad_output = SavedVariable(g, false);
    node->grad = SavedVariable(buffer, false);
    node->grad_scale = SavedVariable(scale, false);
    node->target = SavedVariable(y, false);
    node->weight = SavedVariable(w, false);
    node->options = options;
    torch::autograd::set_history(result, node);
    has_graph = true;
    return result;
  }
};

/// Whether an op with this tensor goes to the kernels of its device, past everything else.
bool goes_to_kernels(const Tensor& x) {
  // A lazy negation and a tensor of zeros without memory have dispatch keys that make real tensors of them.
  return !x.defined() || (is_plain(x) && !x.is_neg() && !x._is_zerotensor());
}

Tensor with_history(const Tensor& self, const Tensor& target, const OptionalTensor& weight,
                    const SymCrossEntropyOptions& options, bool in_place) {
  const Tensor w = weight.has_value() ? *weight : Tensor();
  if (wants_composite(self) || wants_composite(target) || wants_composite(w) ||
      !takes_cross_entropy(self, target, weight, options)) {
    return cross_entropy_by_aten(self, target, weight, options);
  }
  const bool of_logits = torch::autograd::compute_requires_grad(self);
  const bool of_others = torch::autograd::compute_requires_grad(target, w);
  if (!of_logits && !of_others) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    // No mode or wrapper needs to see the call, so it goes to the kernels without a second dispatch, and
    // without tensors for a gradient.
    if (goes_to_kernels(self) && goes_to_kernels(target) && goes_to_kernels(w) &&
        !c10::impl::TorchDispatchModeTLS::any_modes_set()) {
      return cross_entropy_loss(self, target, weight, options);
    }
    return cross_entropy(self, target, weight, options);
  }
  auto node = make_node<CrossEntropyNode>();
  node->set_next_edges(of_others ? torch::autograd::collect_next_edges(self, target, w)
                                 : torch::autograd::collect_next_edges(self));
  node->target = SavedVariable(target, false);
  node->weight = SavedVariable(w, false);
  node->options = known(options);
  node->in_place = in_place && of_logits;
  Tensor loss, grad, grad_scale, log_p;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    if (of_others) log_p = softkern::log_softmax(self, class_dim(self));  // before the logits are overwritten
    if (node->in_place) {
      std::tie(loss, grad_scale) = cross_entropy_forward_(self, target, weight, options);
    } else {
      std::tie(loss, grad, grad_scale) = cross_entropy_forward(self, target, weight, options, of_logits);
    }
  }
  if (node->in_place) {
    // Ops that saved the logits must find them modified. The gradient shares the version counter of the
    // logits: if they are modified again before the backward, they no longer hold the gradient, and autograd
    // raises.
    torch::autograd::impl::bump_version(self);
    grad = self.detach();
  }
  if (of_logits) {
    node->grad = SavedVariable(grad, false);
    node->grad_scale = SavedVariable(grad_scale, false);
  }
  if (of_others) node->log_p = SavedVariable(log_p, false);
  torch::autograd::set_history(loss, node);
  return loss;
}

Tensor cross_entropy_autograd(const Tensor& self, const Tensor& target, const OptionalTensor& weight,
                              const SymCrossEntropyOptions& options) {
  if (is_for_onnx(self)) return aten_cross_entropy(self, target, weight, options);
  return with_history(self, target, weight, options, false);
}

Tensor cross_entropy_autograd_(Tensor self, const Tensor& target, const OptionalTensor& weight,
                               const SymCrossEntropyOptions& options) {
  if (is_for_onnx(self)) return aten_cross_entropy(self, target, weight, options);
  const bool in_place =
      torch::autograd::compute_requires_grad(self) && is_plain(self) && !wants_composite(self);
  if (in_place) {
    // As for torch's own in-place ops, the tensor must be neither a leaf that requires a gradient nor a view
    // of one.
    torch::autograd::check_inplace(self, /*requires_grad=*/true);
    at::assert_no_internal_overlap(self);
  }
  return with_history(self, target, weight, options, in_place && has_simple_strides(self));
}

Tensor cross_entropy_batched(const Tensor& self, const Tensor& target, const OptionalTensor& weight,
                             const SymCrossEntropyOptions& options) {
  return cross_entropy_by_aten(self, target, weight, options);
}

Tensor cross_entropy_batched_(Tensor self, const Tensor& target, const OptionalTensor& weight,
                              const SymCrossEntropyOptions& options) {
  return cross_entropy_by_aten(self, target, weight, options);
}

/// For torch.func.functionalize. A write in place would change the current value of the functional tensor.
Tensor cross_entropy_functional_(Tensor self, const Tensor& target, const OptionalTensor& weight,
                                 const SymCrossEntropyOptions& options) {
  return cross_entropy(self, target, weight, options);
}

/// For vmap over upstream gradients (is_grads_batched, vectorised Jacobians): scales the gradient with ATen's
/// ops.
Tensor cross_entropy_backward_batched(const Tensor& grad_output, const Tensor& grad, const Tensor& grad_scale,
                                      const Tensor& target, c10::SymInt ignore_index) {
  const int64_t dim = class_dim(grad);
  Tensor factor = grad_output.to(grad_scale.scalar_type()).mul(grad_scale);
  if (factor.dim() > 0) factor = factor.unsqueeze(dim);
  const Tensor scaled = grad.to(grad_scale.scalar_type()).mul(factor).to(grad.scalar_type());
  if (target.dim() == grad.dim()) return scaled;
  const Tensor ignored = target.to(at::kLong).eq(as_int(ignore_index)).unsqueeze(dim);
  return scaled.masked_fill(ignored, 0);
}

/// As torch's own autocast rule on all devices: cross_entropy runs in float32.
template <c10::DeviceType kDevice, c10::DispatchKey kKey>
Tensor cross_entropy_autocast(const Tensor& self, const Tensor& target, const OptionalTensor& weight,
                              const SymCrossEntropyOptions& options) {
  const c10::impl::ExcludeDispatchKeyGuard guard(kKey);
  const auto cast = [](const Tensor& x) { return at::autocast::cached_cast(at::kFloat, x, kDevice); };
  const OptionalTensor w = weight.has_value() && weight->defined() ? OptionalTensor(cast(*weight)) : weight;
  return cross_entropy(cast(self), cast(target), w, options);
}

/// A copy in float32 may be in autocast's cache, for the next op. So only logits that are float32 already are
/// overwritten.
template <c10::DeviceType kDevice, c10::DispatchKey kKey>
Tensor cross_entropy_autocast_(Tensor self, const Tensor& target, const OptionalTensor& weight,
                               const SymCrossEntropyOptions& options) {
  if (self.scalar_type() != at::kFloat) {
    return cross_entropy_autocast<kDevice, kKey>(self, target, weight, options);
  }
  const c10::impl::ExcludeDispatchKeyGuard guard(kKey);
  return cross_entropy_(self, target, weight, options);
}

template <c10::DeviceType kDevice, c10::DispatchKey kKey>
void register_cross_entropy_autocast(torch::Library& m) {
  m.impl("cross_entropy", unpacked<&cross_entropy_autocast<kDevice, kKey>>);
  m.impl("cross_entropy_", unpacked<&cross_entropy_autocast_<kDevice, kKey>>);
}

}  // namespace

TORCH_LIBRARY_IMPL(softkern, Autograd, m) {
  m.impl("cross_entropy", unpacked<&cross_entropy_autograd>);
  m.impl("cross_entropy_", unpacked<&cross_entropy_autograd_>);
  // The derivatives of these ops would be second derivatives, which the Nodes compute in another way.
  for (const char* name : {"cross_entropy_forward", "cross_entropy_forward_", "cross_entropy_backward",
                           "cross_entropy_backward_"}) {
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
  }
}

TORCH_LIBRARY_IMPL(softkern, FuncTorchBatched, m) {
  m.impl("cross_entropy", unpacked<&cross_entropy_batched>);
  m.impl("cross_entropy_", unpacked<&cross_entropy_batched_>);
  m.impl("cross_entropy_backward", &cross_entropy_backward_batched);
}

TORCH_LIBRARY_IMPL(softkern, Functionalize, m) {
  m.impl("cross_entropy_", unpacked<&cross_entropy_functional_>);
}

TORCH_LIBRARY_IMPL(softkern, Batched, m) {
  m.impl("cross_entropy_backward", &cross_entropy_backward_batched);
}

TORCH_LIBRARY_IMPL(softkern, AutocastCPU, m) {
  register_cross_entropy_autocast<c10::DeviceType::CPU, c10::DispatchKey::AutocastCPU>(m);
}

TORCH_LIBRARY_IMPL(softkern, AutocastCUDA, m) {
  register_cross_entropy_autocast<c10::DeviceType::CUDA, c10::DispatchKey::AutocastCUDA>(m);
}

TORCH_LIBRARY_IMPL(softkern, AutocastXPU, m) {
  register_cross_entropy_autocast<c10::DeviceType::XPU, c10::DispatchKey::AutocastXPU>(m);
}

}  // namespace softkern
