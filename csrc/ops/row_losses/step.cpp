// SPDX-License-Identifier: Apache-2.0
// The step of row_losses in ATen's ops, for a backend without kernels of its own for it.
#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>

#include "aten.h"
#include "call.h"

namespace softkern {

void CrossEntropyKernels::row_losses(const RowCall& call, const RowOutputs& outputs, const RowGradients& upstream,
                                     const Tensor& grad) const {
  at::DimVector rows(call.logits.sizes());
  rows.erase(rows.begin() + call.dim);
  const auto as_rows_of = [&](const Tensor& x, int64_t k) -> Tensor {
    if (!x.defined()) return x;
    if (k == 0) return x.view(rows);
    at::DimVector last(rows);
    last.push_back(k);
    return x.view(last).movedim(-1, call.dim).contiguous();
  };
  const bool many = call.kind == TargetKind::kIndices;
  const int64_t k = many ? call.per_row : 0;
  const auto optional = [](const Tensor& x) { return x.defined() ? OptionalTensor(x) : std::nullopt; };
  const RowTensors of(call.logits, optional(call.kind == TargetKind::kProbabilities ? call.probabilities : as_rows_of(call.target, k)),
                      optional(call.weight), optional(as_rows_of(call.row_weight, 0)), std::nullopt,
                      optional(as_rows_of(call.target_probs, k)));
  SymRowOptions options = symbolic(call.options);
  options.reduction = kNone;
  options.outputs = (outputs.loss.defined() ? kLoss : 0) | (outputs.log_prob.defined() ? kLogProb : 0) |
                    (outputs.lse.defined() ? kLse : 0) | (outputs.entropy.defined() ? kEntropy : 0) |
                    (outputs.argmax.defined() ? kArgmax : 0) | (outputs.correct.defined() ? kCorrect : 0);
  Tensor gradient;
  if (grad.defined()) {
    Tensor g = upstream.factor.on_device.defined() ? upstream.factor.on_device.to(call.compute)
                                                   : at::full({}, upstream.factor.value, call.logits.options().dtype(call.compute));
    if (upstream.loss.defined()) g = g * as_rows_of(upstream.loss, 0);
    RowUpstream all{g.expand(rows), as_rows_of(upstream.log_prob, k), as_rows_of(upstream.lse, 0), as_rows_of(upstream.entropy, 0)};
    if (call.kind == TargetKind::kNone || (many && !call.target_probs.defined())) all.loss = Tensor();
    gradient = row_losses_gradient_in_aten(all, of, options);
  }
  const auto [loss, log_prob, lse, entropy, argmax, correct] = row_losses_in_aten(of, options);
  const auto copy = [](const Tensor& to, const Tensor& from) {
    if (to.defined()) to.copy_(from.reshape(-1));
  };
  copy(outputs.loss, loss), copy(outputs.lse, lse), copy(outputs.entropy, entropy);
  copy(outputs.argmax, argmax), copy(outputs.correct, correct);
  copy(outputs.log_prob, many && log_prob.numel() > 0 ? log_prob.movedim(call.dim, -1) : log_prob);
  if (grad.defined()) grad.copy_(gradient);
}

}  // namespace softkern
