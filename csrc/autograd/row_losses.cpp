// SPDX-License-Identifier: Apache-2.0
// row_losses above the kernels in the dispatcher: autograd, functorch, autocast.
#include <ATen/autocast_mode.h>
#include <ATen/ops/ones.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/graph_task.h>

#include "../ops/onnx.h"
#include "../ops/ops.h"
#include "../ops/row_losses/aten.h"
#include "node.h"

namespace softkern {
namespace {

/// Keeps the logits, which the gradients of the statistics and further derivatives need.
struct RowLossesNode : SavingNode<RowLossesNode> {
  SavedVariable grad;  // of the loss alone, from the forward; unset if the forward has not computed it
  SavedVariable logits;
  SavedVariable target;
  SavedVariable weight;
  SavedVariable row_weight;
  SavedVariable num_items;
  SavedVariable target_probs;
  RowOptions options;
  bool has_grad = false;
  bool in_place = false;  // the gradient may be written over the logits

  std::string name() const override { return "SoftkernRowLossesBackward"; }
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto given = [&](size_t i, int64_t output) {
      return (options.outputs & output) != 0 ? grads[i] : Tensor();
    };
    const RowUpstream upstream{given(0, kLoss), given(1, kLogProb), given(2, kLse), given(3, kEntropy)};
    const bool of_rows = upstream.log_prob.defined() || upstream.lse.defined() || upstream.entropy.defined();
    if (!task_should_compute_output(0) || (!upstream.loss.defined() && !of_rows)) return {Tensor()};
    if (at::GradMode::is_enabled()) {
      return {row_losses_gradient_in_aten(upstream, tensors(), symbolic(options))};
    }
    if (has_grad && !of_rows) return {scaled(upstream.loss)};
    if (!keeps_graph()) grad.reset_data();  // its memory, before the result's
    return {recomputed(upstream)};
  }
  void compiled_args(CompiledNodeArgs& args) const override {
    collect_saved(args);
    std::apply([&](const auto&... field) { (args.collect(field), ...); }, fields(options));
    args.collect(has_grad);
    args.collect(in_place);
  }

  static constexpr SavedVariable RowLossesNode::* kSaved[] = {
      &RowLossesNode::grad,        &RowLossesNode::target,     &RowLossesNode::logits,
      &RowLossesNode::weight,      &RowLossesNode::row_weight, &RowLossesNode::num_items,
      &RowLossesNode::target_probs};
  /// The gradient of the loss alone is stored. Nothing else is read then but the target, for the ignored
  /// rows: logits and weights may have been modified.
  size_t used() const { return has_grad && !has_statistics() ? 2 : std::size(kSaved); }

 private:
  RowTensors tensors() {
    return {logits.unpack(),     target.unpack(),    weight.unpack(),
            row_weight.unpack(), num_items.unpack(), target_probs.unpack()};
  }
  bool has_statistics() const { return (options.outputs & (kLogProb | kLse | kEntropy)) != 0; }
  static bool keeps_graph() { return torch::autograd::get_current_graph_task_keep_graph(); }

  Tensor scaled(const Tensor& g) {
    Tensor buffer = grad.unpack();
    const Tensor one = at::ones({}, buffer.options().dtype(compute_type_of(buffer)));
    // Only one class index a row can be ignored. A target of the gradient's shape says that no row is.
    const Tensor y = target.unpack();
    const bool ignores = y.defined() && y.dim() == buffer.dim() - 1;
    // Not before the tensors are unpacked: activation checkpointing computes them again, with autograd.
    const at::AutoDispatchBelowADInplaceOrView guard;
    if (is_plain(g) && is_plain(buffer) && !keeps_graph()) {
      grad.reset_data();
      // As in cross_entropy: overwrites only memory that nothing else can see, or that the user allowed to
      // overwrite.
      if (in_place ||
          (buffer.use_count() == 1 && buffer.storage().use_count() == 1 && buffer.is_contiguous())) {
        cross_entropy_backward_(g, buffer, one, ignores ? y : buffer, options.ignore_index);
        return buffer;
      }
    }
    return cross_entropy_backward(g, buffer, one, ignores ? y : buffer, options.ignore_index);
  }
  Tensor recomputed(const RowUpstream& upstream) {
    const RowTensors of = tensors();
    const at::AutoDispatchBelowADInplaceOrView guard;
    const SymRowOptions all = symbolic(options);
    const OptionalTensor y = if_given(of.target), w = if_given(of.weight), r = if_given(of.row_weight),
                         n = if_given(of.num_items), t = if_given(of.target_probs);
    const OptionalTensor g = if_given(upstream.loss), g_log_prob = if_given(upstream.log_prob),
                         g_lse = if_given(upstream.lse), g_entropy = if_given(upstream.entropy);
    if (in_place && !keeps_graph() && is_plain(of.self)) {
      Tensor x = of.self.detach();
      row_losses_backward_(g, g_log_prob, g_lse, g_entropy, x, y, w, r, n, t, all);
      // Ops that saved the logits must find them modified.
      torch::autograd::impl::bump_version(of.self);
      return x;
    }
    return row_losses_backward(g, g_log_prob, g_lse, g_entropy, of.self, y, w, r, n, t, all);
  }
  static at::ScalarType compute_type_of(const Tensor& x) {
    return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  }
};

RowResults with_history(const RowTensors& of, const SymRowOptions& options, bool in_place) {
  if (of.any(wants_composite) || !takes_row_losses(of, options)) return row_losses_by_aten(of, options);
  const OptionalTensor y = if_given(of.target), w = if_given(of.weight), r = if_given(of.row_weight),
                       n = if_given(of.num_items), t = if_given(of.target_probs);
  if (torch::autograd::compute_requires_grad(of.target, of.weight, of.row_weight, of.num_items,
                                             of.target_probs)) {
    return row_losses_by_aten(of, options);
  }
  if (!torch::autograd::compute_requires_grad(of.self)) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return row_losses(of.self, y, w, r, n, t, options);
  }
  auto node = make_node<RowLossesNode>();
  node->set_next_edges(torch::autograd::collect_next_edges(of.self));
  node->options = known(options);
  node->in_place = in_place;
  // float16 gradients are stored only after the upstream gradient is known: the 1/N of a mean would make them
  // subnormal.
  node->has_grad = (options.outputs & kLoss) != 0 && of.self.scalar_type() != at::kHalf;
  // The statistics' gradients need the logits.
  const bool over_logits =
      in_place && node->has_grad && (options.outputs & (kLogProb | kLse | kEntropy)) == 0;
  if (in_place && !over_logits) node->has_grad = false;  // no second tensor of the logits' size
  // The version of the logits before they are overwritten: whoever needs them later gets torch's error.
  node->logits = SavedVariable(of.self, false);
  node->target = SavedVariable(of.target, false);
  node->weight = SavedVariable(of.weight, false);
  node->row_weight = SavedVariable(of.row_weight, false);
  node->num_items = SavedVariable(of.num_items, false);
  node->target_probs = SavedVariable(of.target_probs, false);
  RowResults results;
  Tensor grad;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    if (over_logits) {
      results = row_losses_forward_(of.self, y, w, r, n, t, options);
    } else {
      auto [loss, log_prob, lse, entropy, argmax, correct, g] =
          row_losses_forward(of.self, y, w, r, n, t, options, node->has_grad);
      results = {loss, log_prob, lse, entropy, argmax, correct};
      grad = g;
    }
  }
  if (over_logits) {
    // As in cross_entropy: the gradient shares the version counter of the logits.
    torch::autograd::impl::bump_version(of.self);
    grad = of.self.detach();
  }
  if (node->has_grad) node->grad = SavedVariable(grad, false);
  auto& [loss, log_prob, lse, entropy, argmax, correct] = results;
  torch::autograd::set_history(variable_list{loss, log_prob, lse, entropy}, node);
  return results;
}

RowResults row_losses_autograd(const Tensor& self, SOFTKERN_ROW_TENSORS, const SymRowOptions& options) {
  const RowTensors of(self, target, weight, row_weight, num_items, target_probs);
  if (is_for_onnx(self)) return row_losses_in_aten(of, options);
  return with_history(of, options, false);
}

RowResults row_losses_autograd_(Tensor self, SOFTKERN_ROW_TENSORS, const SymRowOptions& options) {
  const RowTensors of(self, target, weight, row_weight, num_items, target_probs);
  if (is_for_onnx(self)) return row_losses_in_aten(of, options);
  const bool in_place =
      torch::autograd::compute_requires_grad(self) && is_plain(self) && !wants_composite(self);
  if (in_place) {
    torch::autograd::check_inplace(self, /*requires_grad=*/true);
    at::assert_no_internal_overlap(self);
  }
  return with_history(of, options, in_place && has_simple_strides(self));
}

RowResults row_losses_batched(const Tensor& self, SOFTKERN_ROW_TENSORS, const SymRowOptions& options) {
  return row_losses_by_aten({self, target, weight, row_weight, num_items, target_probs}, options);
}

RowResults row_losses_batched_(Tensor self, SOFTKERN_ROW_TENSORS, const SymRowOptions& options) {
  return row_losses_by_aten({self, target, weight, row_weight, num_items, target_probs}, options);
}

/// For torch.func.functionalize. A write in place would change the current value of the functional tensor.
RowResults row_losses_functional_(Tensor self, SOFTKERN_ROW_TENSORS, const SymRowOptions& options) {
  return row_losses(self, target, weight, row_weight, num_items, target_probs, options);
}

/// For vmap over upstream gradients.
Tensor row_losses_backward_batched(const OptionalTensor& grad_loss, const OptionalTensor& grad_log_prob,
                                   const OptionalTensor& grad_lse, const OptionalTensor& grad_entropy,
                                   const Tensor& self, SOFTKERN_ROW_TENSORS, const SymRowOptions& options) {
  const auto tensor = [](const OptionalTensor& g) { return g.value_or(Tensor()); };
  const RowUpstream upstream{tensor(grad_loss), tensor(grad_log_prob), tensor(grad_lse),
                             tensor(grad_entropy)};
  return row_losses_gradient_in_aten(upstream, {self, target, weight, row_weight, num_items, target_probs},
                                     options);
}

/// As cross_entropy: in float32.
template <c10::DeviceType kDevice, c10::DispatchKey kKey>
RowResults row_losses_autocast(const Tensor& self, SOFTKERN_ROW_TENSORS, const SymRowOptions& options) {
  const c10::impl::ExcludeDispatchKeyGuard guard(kKey);
  const auto cast = [](const OptionalTensor& x) {
    return x.has_value() && x->defined() ? OptionalTensor(at::autocast::cached_cast(at::kFloat, *x, kDevice))
                                         : x;
  };
  return row_losses(at::autocast::cached_cast(at::kFloat, self, kDevice), cast(target), cast(weight),
                    cast(row_weight), num_items, cast(target_probs), options);
}

/// A copy in float32 may be in autocast's cache, for the next op. So only logits that are float32 already are
/// overwritten.
template <c10::DeviceType kDevice, c10::DispatchKey kKey>
RowResults row_losses_autocast_(Tensor self, SOFTKERN_ROW_TENSORS, const SymRowOptions& options) {
  if (self.scalar_type() != at::kFloat) {
    return row_losses_autocast<kDevice, kKey>(self, target, weight, row_weight, num_items, target_probs,
                                              options);
  }
  const c10::impl::ExcludeDispatchKeyGuard guard(kKey);
  return row_losses_(self, target, weight, row_weight, num_items, target_probs, options);
}

template <c10::DeviceType kDevice, c10::DispatchKey kKey>
void register_row_losses_autocast(torch::Library& m) {
  m.impl("row_losses", unpacked<&row_losses_autocast<kDevice, kKey>>);
  m.impl("row_losses_", unpacked<&row_losses_autocast_<kDevice, kKey>>);
}

}  // namespace

TORCH_LIBRARY_IMPL(softkern, Autograd, m) {
  m.impl("row_losses", unpacked<&row_losses_autograd>);
  m.impl("row_losses_", unpacked<&row_losses_autograd_>);
  for (const char* name :
       {"row_losses_forward", "row_losses_forward_", "row_losses_backward", "row_losses_backward_"}) {
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
  }
}

TORCH_LIBRARY_IMPL(softkern, FuncTorchBatched, m) {
  m.impl("row_losses", unpacked<&row_losses_batched>);
  m.impl("row_losses_", unpacked<&row_losses_batched_>);
  m.impl("row_losses_backward", unpacked<&row_losses_backward_batched>);
}

TORCH_LIBRARY_IMPL(softkern, Batched, m) {
  m.impl("row_losses_backward", unpacked<&row_losses_backward_batched>);
}

TORCH_LIBRARY_IMPL(softkern, Functionalize, m) { m.impl("row_losses_", unpacked<&row_losses_functional_>); }

TORCH_LIBRARY_IMPL(softkern, AutocastCPU, m) {
  register_row_losses_autocast<c10::DeviceType::CPU, c10::DispatchKey::AutocastCPU>(m);
}

TORCH_LIBRARY_IMPL(softkern, AutocastCUDA, m) {
  register_row_losses_autocast<c10::DeviceType::CUDA, c10::DispatchKey::AutocastCUDA>(m);
}

TORCH_LIBRARY_IMPL(softkern, AutocastXPU, m) {
  register_row_losses_autocast<c10::DeviceType::XPU, c10::DispatchKey::AutocastXPU>(m);
}

}  // namespace softkern
