// SPDX-License-Identifier: Apache-2.0
// What Python calls, by pybind11 (python.cpp) or through the dispatcher (calls.cpp): the ops, except in an
// export to ONNX, and what tests and tracers ask.
// Tracers record the op that is called here, and the op itself can't prevent this. So exports to ONNX call
// torch's ops instead.
#pragma once

#include "autograd/output_node.h"
#include "ops/fallback.h"
#include "ops/linear_cross_entropy/aten.h"
#include "ops/onnx.h"
#include "ops/ops.h"
#include "ops/row_losses/aten.h"

namespace softkern::entry {

template <class Op>
at::Tensor softmax(const at::Tensor& input, int64_t dim) {
  return is_traced_for_onnx(input) ? Op::torchs(input, dim) : Op::forward(input, dim);
}

at::Tensor cross_entropy(const at::Tensor& input, const at::Tensor& target,
                         const std::optional<at::Tensor>& weight, const CrossEntropyOptions& given,
                         bool inplace_backward);
bool takes_cross_entropy(const at::Tensor& input, const at::Tensor& target,
                         const std::optional<at::Tensor>& weight, const SymCrossEntropyOptions& options);

RowResults row_losses(const at::Tensor& input, SOFTKERN_ROW_TENSORS, const RowOptions& given,
                      bool inplace_backward);
bool takes_row_losses(const at::Tensor& input, SOFTKERN_ROW_TENSORS, const SymRowOptions& options);
/// For tensors whose class knows ATen's ops alone, and for the decompositions of exported programs.
RowResults row_losses_in_aten(const at::Tensor& input, SOFTKERN_ROW_TENSORS, const SymRowOptions& options);

RowResults linear_cross_entropy(SOFTKERN_LINEAR_TENSORS, const LinearOptions& given);
bool takes_linear_cross_entropy(SOFTKERN_LINEAR_TENSORS, const SymLinearOptions& options);
RowResults linear_cross_entropy_in_aten(SOFTKERN_LINEAR_TENSORS, const SymLinearOptions& options);

/// The step row_losses of the backend for logits (N, C) of the classes from `first` on, so that tests can
/// call it alone.
void row_losses_step(const at::Tensor& input, SOFTKERN_ROW_TENSORS, const RowOptions& options, int64_t first,
                     const std::optional<at::Tensor>& whole, const std::optional<at::Tensor>& parts,
                     const std::optional<at::Tensor>& of_loss, const std::optional<at::Tensor>& of_log_prob,
                     const std::optional<at::Tensor>& of_lse, const std::optional<at::Tensor>& of_entropy,
                     const std::optional<at::Tensor>& loss, const std::optional<at::Tensor>& grad);

/// Calls f(name, function) for each of these. A function takes one argument for each option.
template <class F>
void for_each(F f) {
  for_each_softmax([&](auto op) { f(op.forward.kName, &softmax<decltype(op)>); });
  f("cross_entropy", unpacked<&cross_entropy>);
  f("takes_cross_entropy", unpacked<&takes_cross_entropy>);
  f("row_losses", unpacked<&row_losses>);
  f("takes_row_losses", unpacked<&takes_row_losses>);
  f("row_losses_in_aten", unpacked<&row_losses_in_aten>);
  f("linear_cross_entropy", unpacked<&linear_cross_entropy>);
  f("takes_linear_cross_entropy", unpacked<&takes_linear_cross_entropy>);
  f("linear_cross_entropy_in_aten", unpacked<&linear_cross_entropy_in_aten>);
  f("row_losses_step", unpacked<&row_losses_step>);
}

}  // namespace softkern::entry
