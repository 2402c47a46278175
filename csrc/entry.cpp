// SPDX-License-Identifier: Apache-2.0
#include "entry.h"

#include "ops/row_losses/call.h"

namespace softkern::entry {

at::Tensor cross_entropy(const at::Tensor& input, const at::Tensor& target,
                         const std::optional<at::Tensor>& weight, const CrossEntropyOptions& given,
                         bool inplace_backward) {
  const SymCrossEntropyOptions options = symbolic(given);
  if (is_traced_for_onnx(input)) {
    return aten_cross_entropy(input, target, weight, options);
  }
  if (inplace_backward) return softkern::cross_entropy_(input, target, weight, options);
  return softkern::cross_entropy(input, target, weight, options);
}

RowResults row_losses(const at::Tensor& input, SOFTKERN_ROW_TENSORS, const RowOptions& given,
                      bool inplace_backward) {
  const SymRowOptions options = symbolic(given);
  if (is_traced_for_onnx(input)) {
    return softkern::row_losses_in_aten({input, target, weight, row_weight, num_items, target_probs},
                                        options);
  }
  if (inplace_backward) {
    return softkern::row_losses_(input, target, weight, row_weight, num_items, target_probs, options);
  }
  return softkern::row_losses(input, target, weight, row_weight, num_items, target_probs, options);
}

RowResults row_losses_in_aten(const at::Tensor& input, SOFTKERN_ROW_TENSORS, const SymRowOptions& options) {
  return softkern::row_losses_in_aten({input, target, weight, row_weight, num_items, target_probs}, options);
}

void row_losses_step(const at::Tensor& input, SOFTKERN_ROW_TENSORS, const RowOptions& options, int64_t first,
                     const std::optional<at::Tensor>& whole, const std::optional<at::Tensor>& parts,
                     const std::optional<at::Tensor>& of_loss, const std::optional<at::Tensor>& of_log_prob,
                     const std::optional<at::Tensor>& of_lse, const std::optional<at::Tensor>& of_entropy,
                     const std::optional<at::Tensor>& loss, const std::optional<at::Tensor>& grad) {
  const auto& kernels = cross_entropy_kernels(input.device());
  const RowTensors of(input, target, weight, row_weight, num_items, target_probs);
  RowCall call{input, of.kind()};
  call.options = options;
  call.dim = 1;
  call.layout = layout_of(input, 1);
  call.compute = compute_type(input);
  if (call.kind == TargetKind::kProbabilities) {
    call.probabilities = of.target;
  } else if (of.target.defined()) {
    call.target = of.target.to(kernels.index_type(of.target.scalar_type())).contiguous();
    call.per_row = call.kind == TargetKind::kIndices ? of.target.size(1) : 1;
  }
  if (of.target_probs.defined()) call.target_probs = of.target_probs.to(call.compute).contiguous();
  call.weight = of.weight;
  if (of.row_weight.defined()) call.row_weight = of.row_weight.to(call.compute);
  call.first = first;
  call.whole = whole.value_or(at::Tensor());
  RowOutputs outputs;
  outputs.parts = parts.value_or(at::Tensor());
  outputs.loss = loss.value_or(at::Tensor());
  RowGradients upstream;
  upstream.factor = {of_loss.has_value() ? 1.0 : 0.0};
  upstream.loss = of_loss.value_or(at::Tensor());
  upstream.log_prob = of_log_prob.value_or(at::Tensor());
  upstream.lse = of_lse.value_or(at::Tensor());
  upstream.entropy = of_entropy.value_or(at::Tensor());
  kernels.row_losses(call, outputs, upstream, grad.value_or(at::Tensor()));
}

bool takes_cross_entropy(const at::Tensor& input, const at::Tensor& target,
                         const std::optional<at::Tensor>& weight, const SymCrossEntropyOptions& options) {
  return softkern::takes_cross_entropy(input, target, weight, options);
}

bool takes_row_losses(const at::Tensor& input, SOFTKERN_ROW_TENSORS, const SymRowOptions& options) {
  return softkern::takes_row_losses({input, target, weight, row_weight, num_items, target_probs}, options);
}

RowResults linear_cross_entropy(SOFTKERN_LINEAR_TENSORS, const LinearOptions& given) {
  const SymLinearOptions options = symbolic(given);
  if (is_traced_for_onnx(input)) {
    return softkern::linear_cross_entropy_in_aten(
        {input, linear_weight, linear_bias, target, weight, row_weight, num_items, target_probs}, options);
  }
  return softkern::linear_cross_entropy(input, linear_weight, linear_bias, target, weight, row_weight,
                                        num_items, target_probs, options);
}

RowResults linear_cross_entropy_in_aten(SOFTKERN_LINEAR_TENSORS, const SymLinearOptions& options) {
  return softkern::linear_cross_entropy_in_aten(
      {input, linear_weight, linear_bias, target, weight, row_weight, num_items, target_probs}, options);
}

bool takes_linear_cross_entropy(SOFTKERN_LINEAR_TENSORS, const SymLinearOptions& options) {
  return softkern::takes_linear_cross_entropy(
      {input, linear_weight, linear_bias, target, weight, row_weight, num_items, target_probs}, options);
}

}  // namespace softkern::entry
