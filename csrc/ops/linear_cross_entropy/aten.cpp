// SPDX-License-Identifier: Apache-2.0
#include "aten.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/linear.h>

namespace softkern {
namespace {

/// The arguments of row_losses with the logits, in the dtype of the inputs unless the loss is wide.
RowTensors rows_of(const LinearTensors& of, const SymLinearOptions& options) {
  Tensor logits = at::linear(of.input, of.matrix, if_given(of.bias));
  if (options.wide_loss != 0) logits = logits.to(compute_type(of.input));
  RowTensors rows = of.rows;
  const at::ScalarType type = logits.scalar_type();
  rows.self = logits;
  if (rows.kind() == TargetKind::kProbabilities) rows.target = rows.target.to(type);
  if (rows.weight.defined()) rows.weight = rows.weight.to(type);
  return rows;
}

}  // namespace

RowResults linear_cross_entropy_in_aten(const LinearTensors& of, const SymLinearOptions& options) {
  return row_losses_in_aten(rows_of(of, options), options);
}

RowResults linear_cross_entropy_of_logits(const LinearTensors& of, const SymLinearOptions& options) {
  const RowTensors rows = rows_of(of, options);
  return row_losses(rows.self, if_given(rows.target), if_given(rows.weight), if_given(rows.row_weight),
                    if_given(rows.num_items), if_given(rows.target_probs), options);
}

LinearGradients linear_cross_entropy_gradients_in_aten(const RowUpstream& upstream, const LinearTensors& of,
                                                       const SymLinearOptions& options, int64_t needs) {
  const Tensor dz =
      row_losses_gradient_in_aten(upstream, rows_of(of, options), options).to(of.input.scalar_type());
  const auto needed = [&](int64_t need) { return (needs & need) != 0; };
  return {needed(kNeedsInput) ? dz.matmul(of.matrix) : Tensor(),
          needed(kNeedsWeight) ? dz.t().matmul(of.input) : Tensor(),
          needed(kNeedsBias) ? dz.sum(0) : Tensor()};
}

}  // namespace softkern
