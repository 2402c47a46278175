// SPDX-License-Identifier: Apache-2.0
// linear_cross_entropy above the kernels in the dispatcher: autograd, functorch, autocast.
#include <ATen/autocast_mode.h>
#include <ATen/ops/ones.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/graph_task.h>

#include "../ops/linear_cross_entropy/aten.h"
#include "../ops/onnx.h"
#include "node.h"

namespace softkern {
namespace {

/// Keeps the gradients of the loss that the forward has computed, or else the numbers of the rows from which
/// the backward computes them.
struct LinearCrossEntropyNode : SavingNode<LinearCrossEntropyNode> {
  static constexpr size_t kInputs = 3;
  SavedVariable input, matrix, bias, target, weight, row_weight, num_items, target_probs;
  SavedVariable numbers;
  SavedVariable grad_input, grad_weight, grad_bias;
  LinearOptions options;
  bool has_grads = false;

  std::string name() const override { return "SoftkernLinearCrossEntropyBackward"; }
  variable_list apply(variable_list&& upstream) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto given = [&](size_t i, int64_t output) {
      return (options.outputs & output) != 0 ? upstream[i] : Tensor();
    };
    const RowUpstream g{given(0, kLoss), given(1, kLogProb), given(2, kLse), given(3, kEntropy)};
    const bool of_rows = g.log_prob.defined() || g.lse.defined() || g.entropy.defined();
    int64_t needs = 0;
    for (size_t i = 0; i < kInputs; ++i) {
      if (task_should_compute_output(i)) needs |= int64_t{1} << i;
    }
    if (needs == 0 || (!g.loss.defined() && !of_rows)) return variable_list(kInputs);
    // Raises if one of them was modified after the forward.
    const LinearTensors of = tensors();
    if (at::GradMode::is_enabled()) {
      return listed(linear_cross_entropy_gradients_in_aten(g, of, symbolic(options), needs));
    }
    if (has_grads && !of_rows) return scaled(g.loss, needs);
    if (!torch::autograd::get_current_graph_task_keep_graph()) {
      for (size_t i = 0; i < kInputs; ++i) grad(i).reset_data();  // their memory, before the results'
    }
    const at::AutoDispatchBelowADInplaceOrView guard;
    const RowTensors& r = of.rows;
    return listed(linear_cross_entropy_backward(
        if_given(g.loss), if_given(g.log_prob), if_given(g.lse), if_given(g.entropy), numbers.unpack(),
        of.input, of.matrix, if_given(of.bias), if_given(r.target), if_given(r.weight),
        if_given(r.row_weight), if_given(r.num_items), if_given(r.target_probs), symbolic(options), needs));
  }
  void compiled_args(CompiledNodeArgs& args) const override {
    collect_saved(args);
    std::apply([&](const auto&... field) { (args.collect(field), ...); }, fields(options));
    args.collect(has_grads);
  }

  static constexpr SavedVariable LinearCrossEntropyNode::* kSaved[] = {
      &LinearCrossEntropyNode::input,       &LinearCrossEntropyNode::matrix,
      &LinearCrossEntropyNode::bias,        &LinearCrossEntropyNode::target,
      &LinearCrossEntropyNode::weight,      &LinearCrossEntropyNode::row_weight,
      &LinearCrossEntropyNode::num_items,   &LinearCrossEntropyNode::target_probs,
      &LinearCrossEntropyNode::numbers,     &LinearCrossEntropyNode::grad_input,
      &LinearCrossEntropyNode::grad_weight, &LinearCrossEntropyNode::grad_bias};
  static constexpr size_t used() { return std::size(kSaved); }
  /// The gradient that the forward has computed of input i.
  SavedVariable& grad(size_t i) { return this->*kSaved[std::size(kSaved) - kInputs + i]; }

 private:
  LinearTensors tensors() {
    return {input.unpack(),
            matrix.unpack(),
            if_given(bias.unpack()),
            if_given(target.unpack()),
            if_given(weight.unpack()),
            if_given(row_weight.unpack()),
            if_given(num_items.unpack()),
            if_given(target_probs.unpack())};
  }
  static variable_list listed(const LinearGradients& g) {
    variable_list result{std::get<0>(g), std::get<1>(g), std::get<2>(g)};
    for (Tensor& x : result) {
      if (x.defined() && x.dim() == 1 && x.size(0) == 0) x = Tensor();
    }
    return result;
  }
  /// The upstream gradient times the gradients from the forward, in place where nothing else can see them.
  variable_list scaled(const Tensor& g, int64_t needs) {
    variable_list result(kInputs);
    const bool keeps = torch::autograd::get_current_graph_task_keep_graph();
    for (size_t i = 0; i < kInputs; ++i) {
      if ((needs & int64_t{1} << i) == 0) continue;
      Tensor buffer = grad(i).unpack();
      const at::AutoDispatchBelowADInplaceOrView guard;
      const at::ScalarType compute = compute_type(buffer);
      const Tensor one = at::ones({}, buffer.options().dtype(compute)), factor = g.to(compute);
      // A target of the gradient's shape says that no row is ignored.
      const Tensor rows = buffer.dim() == 1 ? buffer.unsqueeze(0) : buffer;
      if (is_plain(g) && is_plain(buffer) && !keeps) {
        grad(i).reset_data();
        if (buffer.storage().use_count() <= 2) {
          cross_entropy_backward_(factor, rows, one, rows, 0);
          result[i] = buffer;
          continue;
        }
      }
      result[i] = cross_entropy_backward(factor, rows, one, rows, 0).view_as(buffer);
    }
    return result;
  }
};

RowResults linear_with_history(const LinearTensors& of, const SymLinearOptions& options) {
  const RowTensors& r = of.rows;
  if (of.any(wants_composite) || r.any(wants_composite) || !takes_linear_cross_entropy(of, options) ||
      torch::autograd::compute_requires_grad(r.target, r.weight, r.row_weight, r.num_items, r.target_probs)) {
    return linear_cross_entropy_of_logits(of, options);
  }
  const auto y = if_given(r.target), w = if_given(r.weight), rw = if_given(r.row_weight),
             n = if_given(r.num_items), t = if_given(r.target_probs), b = if_given(of.bias);
  if (!torch::autograd::compute_requires_grad(of.input, of.matrix, of.bias)) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return linear_cross_entropy(of.input, of.matrix, b, y, w, rw, n, t, options);
  }
  int64_t needs = 0;
  if (torch::autograd::compute_requires_grad(of.input)) needs |= kNeedsInput;
  if (torch::autograd::compute_requires_grad(of.matrix)) needs |= kNeedsWeight;
  if (torch::autograd::compute_requires_grad(of.bias)) needs |= kNeedsBias;
  const SymLinearOptions with_plan = with_chosen_plan(of, options, needs);
  auto node = make_node<LinearCrossEntropyNode>();
  node->set_next_edges(torch::autograd::collect_next_edges(of.input, of.matrix, of.bias));
  node->options = known(with_plan);
  node->input = SavedVariable(of.input, false);
  node->matrix = SavedVariable(of.matrix, false);
  node->bias = SavedVariable(of.bias, false);
  node->target = SavedVariable(r.target, false);
  node->weight = SavedVariable(r.weight, false);
  node->row_weight = SavedVariable(r.row_weight, false);
  node->num_items = SavedVariable(r.num_items, false);
  node->target_probs = SavedVariable(r.target_probs, false);
  std::array<Tensor, LinearCrossEntropyNode::kInputs> grads;
  Tensor numbers;
  RowResults results;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    auto [loss, log_prob, lse, entropy, argmax, correct, grad_input, grad_weight, grad_bias, all] =
        linear_cross_entropy_forward(of.input, of.matrix, b, y, w, rw, n, t, with_plan, needs);
    results = {loss, log_prob, lse, entropy, argmax, correct};
    grads = {grad_input, grad_weight, grad_bias};
    numbers = all;
  }
  node->numbers = SavedVariable(numbers, false);
  const Tensor of_inputs[] = {of.input, of.matrix, of.bias};
  for (size_t i = 0; i < grads.size(); ++i) {
    if ((needs & int64_t{1} << i) == 0) continue;
    // Gradients that the plan has not computed are empty.
    if (grads[i].dim() != of_inputs[i].dim() && grads[i].dim() == 1) continue;
    if (of_inputs[i].dim() == 1 && TORCH_GUARD_OR_FALSE(grads[i].sym_size(0).sym_eq(0))) continue;
    node->grad(i) = SavedVariable(grads[i], false);
    node->has_grads = true;
  }
  auto& [loss, log_prob, lse, entropy, argmax, correct] = results;
  torch::autograd::set_history(variable_list{loss, log_prob, lse, entropy}, node);
  return results;
}

RowResults linear_autograd(SOFTKERN_LINEAR_TENSORS, const SymLinearOptions& options) {
  const LinearTensors of(input, linear_weight, linear_bias, target, weight, row_weight, num_items,
                         target_probs);
  if (is_for_onnx(input)) return linear_cross_entropy_in_aten(of, options);
  return linear_with_history(of, options);
}

RowResults linear_batched(SOFTKERN_LINEAR_TENSORS, const SymLinearOptions& options) {
  return linear_cross_entropy_of_logits(
      {input, linear_weight, linear_bias, target, weight, row_weight, num_items, target_probs}, options);
}

/// As F.linear, in autocast's dtype, and as cross_entropy, with a loss in float32.
template <c10::DeviceType kDevice, c10::DispatchKey kKey>
RowResults linear_autocast(SOFTKERN_LINEAR_TENSORS, const SymLinearOptions& options) {
  const c10::impl::ExcludeDispatchKeyGuard guard(kKey);
  const at::ScalarType type = at::autocast::get_autocast_dtype(kDevice);
  const auto cast = [](const OptionalTensor& x, at::ScalarType to) {
    return x.has_value() && x->defined() ? OptionalTensor(at::autocast::cached_cast(to, *x, kDevice)) : x;
  };
  SymLinearOptions wide = options;
  wide.wide_loss = 1;
  return linear_cross_entropy(at::autocast::cached_cast(type, input, kDevice),
                              at::autocast::cached_cast(type, linear_weight, kDevice),
                              cast(linear_bias, type), cast(target, at::kFloat), cast(weight, at::kFloat),
                              cast(row_weight, at::kFloat), num_items, cast(target_probs, at::kFloat), wide);
}

}  // namespace

TORCH_LIBRARY_IMPL(softkern, Autograd, m) {
  m.impl("linear_cross_entropy", unpacked<&linear_autograd>);
  for (const char* name : {"linear_cross_entropy_forward", "linear_cross_entropy_backward"}) {
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
  }
}

TORCH_LIBRARY_IMPL(softkern, FuncTorchBatched, m) {
  m.impl("linear_cross_entropy", unpacked<&linear_batched>);
}

TORCH_LIBRARY_IMPL(softkern, AutocastCPU, m) {
  m.impl("linear_cross_entropy",
         unpacked<&linear_autocast<c10::DeviceType::CPU, c10::DispatchKey::AutocastCPU>>);
}

TORCH_LIBRARY_IMPL(softkern, AutocastCUDA, m) {
  m.impl("linear_cross_entropy",
         unpacked<&linear_autocast<c10::DeviceType::CUDA, c10::DispatchKey::AutocastCUDA>>);
}

TORCH_LIBRARY_IMPL(softkern, AutocastXPU, m) {
  m.impl("linear_cross_entropy",
         unpacked<&linear_autocast<c10::DeviceType::XPU, c10::DispatchKey::AutocastXPU>>);
}

}  // namespace softkern
