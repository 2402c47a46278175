// SPDX-License-Identifier: Apache-2.0
// row_losses of CPU tensors.
#include "row_losses.h"

#include "launch.h"

namespace softkern::cpu {

void row_losses(const RowCall& call, const RowOutputs& outputs, const RowGradients& upstream,
                const Tensor& grad) {
  const auto data = [](const Tensor& x) { return x.defined() ? x.const_data_ptr() : nullptr; };
  const auto memory = [](const Tensor& x) { return x.defined() ? x.data_ptr() : nullptr; };
  Tensor keep_logits, keep_probabilities;
  RowLossArgs args{};
  args.shape = call.layout.shape;
  args.valid = call.valid_shape().classes;
  args.first = call.first;
  args.row_valid = call.valid();
  args.whole = data(call.whole);
  args.parts = memory(outputs.parts);
  if (call.whole.defined()) args.whole_step = call.whole.stride(0);
  if (outputs.parts.defined()) args.parts_step = outputs.parts.stride(0);
  args.logits = readable_rows(call.logits, call.dim, keep_logits);
  args.target = static_cast<const int64_t*>(data(call.target));
  args.per_row = call.per_row;
  args.target_probs = data(call.target_probs);
  if (call.probabilities.defined()) {
    args.probabilities = readable_rows(call.probabilities, call.dim, keep_probabilities);
  }
  args.weight = data(call.weight);
  args.row_weight = data(call.row_weight);
  args.options = call.options;
  args.loss = memory(outputs.loss);
  args.log_prob = memory(outputs.log_prob);
  args.lse = memory(outputs.lse);
  args.entropy = memory(outputs.entropy);
  args.argmax = static_cast<int64_t*>(memory(outputs.argmax));
  args.correct = static_cast<bool*>(memory(outputs.correct));
  args.grad_factor = upstream.factor.value;
  args.of_loss = data(upstream.loss);
  args.of_log_prob = data(upstream.log_prob);
  args.of_lse = data(upstream.lse);
  args.of_entropy = data(upstream.entropy);
  if (grad.defined()) {
    args.grad = *as_rows(grad, call.dim, grad.data_ptr());
    args.stream = !grad.is_same(call.logits) && streams(grad.nbytes());
  }
  run(active().by_type[element_type(call.logits)]->row_losses, args, call.layout);
}

}  // namespace softkern::cpu
