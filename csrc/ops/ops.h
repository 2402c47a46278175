// SPDX-License-Identifier: Apache-2.0
// The ops: their names, schemas and signatures, and which of them a backend implements.
#pragma once

#include "op.h"

namespace softkern {

using at::Tensor;

SOFTKERN_OP(softkern, softmax, 0, "(Tensor self, int dim) -> Tensor",
            Tensor(const Tensor& self, int64_t dim));
SOFTKERN_OP(softkern, log_softmax, 0, "(Tensor self, int dim) -> Tensor",
            Tensor(const Tensor& self, int64_t dim));
SOFTKERN_OP(softkern, softmax_backward, 1, "(Tensor grad_output, Tensor output, int dim) -> Tensor",
            Tensor(const Tensor& grad_output, const Tensor& output, int64_t dim));
SOFTKERN_OP(softkern, log_softmax_backward, 1, "(Tensor grad_output, Tensor output, int dim) -> Tensor",
            Tensor(const Tensor& grad_output, const Tensor& output, int64_t dim));

SOFTKERN_OP(softkern, cross_entropy, 0,
            "(Tensor self, Tensor target, Tensor? weight=None" SOFTKERN_OPTIONS_SCHEMA_WITH_DEFAULTS
            ") -> Tensor",
            Tensor(const Tensor& self, const Tensor& target, const OptionalTensor& weight,
                   const SymCrossEntropyOptions& options));

/// As cross_entropy, but if the logits need a gradient, it may be written over them.
SOFTKERN_OP(softkern, cross_entropy_, 0,
            "(Tensor(a!) self, Tensor target, Tensor? weight=None" SOFTKERN_OPTIONS_SCHEMA_WITH_DEFAULTS
            ") -> Tensor",
            Tensor(Tensor self, const Tensor& target, const OptionalTensor& weight,
                   const SymCrossEntropyOptions& options));

/// Returns (loss, grad, grad_scale). With need_grad, the gradient of the logits is
///   grad * (grad_output * grad_scale)       (without a reduction, each row has its element of grad_output),
/// otherwise grad and grad_scale are empty. grad_scale is 1 except for float16. There, grad is stored at a
/// scale that uses the range of the format: the 1/N of a mean would make it subnormal.
SOFTKERN_OP(softkern, cross_entropy_forward, 0,
            "(Tensor self, Tensor target, Tensor? weight" SOFTKERN_OPTIONS_SCHEMA
            ", bool need_grad) -> (Tensor loss, Tensor grad, Tensor grad_scale)",
            std::tuple<Tensor, Tensor, Tensor>(const Tensor& self, const Tensor& target,
                                               const OptionalTensor& weight,
                                               const SymCrossEntropyOptions& options, bool need_grad));

/// Returns (loss, grad_scale). The gradient is written over self.
SOFTKERN_OP(softkern, cross_entropy_forward_, 0,
            "(Tensor(a!) self, Tensor target, Tensor? weight" SOFTKERN_OPTIONS_SCHEMA
            ") -> (Tensor loss, Tensor grad_scale)",
            std::tuple<Tensor, Tensor>(Tensor self, const Tensor& target, const OptionalTensor& weight,
                                       const SymCrossEntropyOptions& options));

SOFTKERN_OP(
    softkern, cross_entropy_backward, 1,
    "(Tensor grad_output, Tensor grad, Tensor grad_scale, Tensor target, SymInt ignore_index) -> Tensor",
    Tensor(const Tensor& grad_output, const Tensor& grad, const Tensor& grad_scale, const Tensor& target,
           c10::SymInt ignore_index));

/// As cross_entropy_backward, but the result is written over grad.
SOFTKERN_OP(
    softkern, cross_entropy_backward_, 1,
    "(Tensor grad_output, Tensor(a!) grad, Tensor grad_scale, Tensor target, SymInt ignore_index) -> ()",
    void(const Tensor& grad_output, Tensor grad, const Tensor& grad_scale, const Tensor& target,
         c10::SymInt ignore_index));

// Losses and statistics of rows, with softkern's own options (common/row_losses.h). `target` has one class
// index a row, K of them in the class dimension, or class probabilities. Results that `outputs` does not ask
// for are empty.

using RowResults = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

#define SOFTKERN_ROW_TENSORS                                                                     \
  const ::softkern::OptionalTensor &target, const ::softkern::OptionalTensor &weight,            \
      const ::softkern::OptionalTensor &row_weight, const ::softkern::OptionalTensor &num_items, \
      const ::softkern::OptionalTensor &target_probs
#define SOFTKERN_ROW_TENSORS_SCHEMA \
  ", Tensor? target, Tensor? weight, Tensor? row_weight, Tensor? num_items, Tensor? target_probs"
#define SOFTKERN_ROW_TENSORS_SCHEMA_WITH_DEFAULTS                                               \
  ", Tensor? target=None, Tensor? weight=None, Tensor? row_weight=None, Tensor? num_items=None" \
  ", Tensor? target_probs=None"
#define SOFTKERN_ROW_RESULTS_SCHEMA \
  "Tensor loss, Tensor log_prob, Tensor lse, Tensor entropy, Tensor argmax, Tensor correct"

SOFTKERN_OP(softkern, row_losses, 0,
            "(Tensor self" SOFTKERN_ROW_TENSORS_SCHEMA_WITH_DEFAULTS SOFTKERN_ROW_OPTIONS_SCHEMA_WITH_DEFAULTS
            ") -> (" SOFTKERN_ROW_RESULTS_SCHEMA ")",
            RowResults(const Tensor& self, SOFTKERN_ROW_TENSORS, const SymRowOptions& options));

/// As row_losses, but if the logits need a gradient, it may be written over them.
SOFTKERN_OP(
    softkern, row_losses_, 0,
    "(Tensor(a!) self" SOFTKERN_ROW_TENSORS_SCHEMA_WITH_DEFAULTS SOFTKERN_ROW_OPTIONS_SCHEMA_WITH_DEFAULTS
    ") -> (" SOFTKERN_ROW_RESULTS_SCHEMA ")",
    RowResults(Tensor self, SOFTKERN_ROW_TENSORS, const SymRowOptions& options));

/// With need_grad, `grad` is the gradient of the logits for an upstream gradient of 1 of the loss alone.
SOFTKERN_OP(softkern, row_losses_forward, 0,
            "(Tensor self" SOFTKERN_ROW_TENSORS_SCHEMA SOFTKERN_ROW_OPTIONS_SCHEMA
            ", bool need_grad) -> (" SOFTKERN_ROW_RESULTS_SCHEMA ", Tensor grad)",
            std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>(
                const Tensor& self, SOFTKERN_ROW_TENSORS, const SymRowOptions& options, bool need_grad));

/// The gradient is written over self.
SOFTKERN_OP(softkern, row_losses_forward_, 0,
            "(Tensor(a!) self" SOFTKERN_ROW_TENSORS_SCHEMA SOFTKERN_ROW_OPTIONS_SCHEMA
            ") -> (" SOFTKERN_ROW_RESULTS_SCHEMA ")",
            RowResults(Tensor self, SOFTKERN_ROW_TENSORS, const SymRowOptions& options));

/// The gradient of the logits for upstream gradients of the results, computed from the logits.
SOFTKERN_OP(softkern, row_losses_backward, 4,
            "(Tensor? grad_loss, Tensor? grad_log_prob, Tensor? grad_lse, Tensor? grad_entropy, Tensor "
            "self" SOFTKERN_ROW_TENSORS_SCHEMA SOFTKERN_ROW_OPTIONS_SCHEMA ") -> Tensor",
            Tensor(const OptionalTensor& grad_loss, const OptionalTensor& grad_log_prob,
                   const OptionalTensor& grad_lse, const OptionalTensor& grad_entropy, const Tensor& self,
                   SOFTKERN_ROW_TENSORS, const SymRowOptions& options));

/// As row_losses_backward, but the result is written over the logits.
SOFTKERN_OP(softkern, row_losses_backward_, 4,
            "(Tensor? grad_loss, Tensor? grad_log_prob, Tensor? grad_lse, Tensor? grad_entropy"
            ", Tensor(a!) self" SOFTKERN_ROW_TENSORS_SCHEMA SOFTKERN_ROW_OPTIONS_SCHEMA ") -> ()",
            void(const OptionalTensor& grad_loss, const OptionalTensor& grad_log_prob,
                 const OptionalTensor& grad_lse, const OptionalTensor& grad_entropy, Tensor self,
                 SOFTKERN_ROW_TENSORS, const SymRowOptions& options));

// Rows whose classes are spread over several tensors, such as those of the ranks of a process group. Class
// indices, weights and valid_classes are of whole rows; class probabilities are of the same classes as the
// logits. Logits are (N, C); there are no further dimensions.

/// The numbers of the classes of each tile of `tile_classes` classes, (kPartNumbers, tiles, N); the z of each
/// of several indices, or 0 for other classes, (N, K); and the first class of the largest z of each tile,
/// (tiles, N), if `outputs` has kArgmax (compute_part in row_losses/driver.h). `first`: the class of whole
/// rows that the logits begin with. Raises for targets that are no classes of whole rows.
SOFTKERN_OP(softkern, row_parts, 0,
            "(Tensor self" SOFTKERN_ROW_TENSORS_SCHEMA SOFTKERN_ROW_OPTIONS_SCHEMA
            ", SymInt first, SymInt tile_classes) -> (Tensor parts, Tensor hot_z, Tensor argmax)",
            std::tuple<Tensor, Tensor, Tensor>(const Tensor& self, SOFTKERN_ROW_TENSORS,
                                               const SymRowOptions& options, c10::SymInt first,
                                               c10::SymInt tile_classes));

/// Merges parts along a tree (cpu/kernels/row_merge.h): (kPartNumbers, parts, N) -> (kPartNumbers, N). `self`
/// gives the dtype of the logits.
SOFTKERN_OP(softkern, row_parts_merge, 0, "(Tensor self, Tensor parts) -> Tensor",
            Tensor(const Tensor& self, const Tensor& parts));

/// The results of row_losses that depend on no order of classes, from the numbers of parts that make up whole
/// rows, and the numbers of whole rows, (kPartNumbers, N).
SOFTKERN_OP(softkern, row_parts_results, 0,
            "(Tensor self, Tensor parts, Tensor hot_z" SOFTKERN_ROW_TENSORS_SCHEMA SOFTKERN_ROW_OPTIONS_SCHEMA
            ") -> (Tensor loss, Tensor log_prob, Tensor lse, Tensor entropy, Tensor whole)",
            std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>(const Tensor& self, const Tensor& parts,
                                                               const Tensor& hot_z, SOFTKERN_ROW_TENSORS,
                                                               const SymRowOptions& options));

/// The gradient of the logits for upstream gradients of these results, from the numbers of whole rows.
SOFTKERN_OP(softkern, row_parts_backward, 4,
            "(Tensor? grad_loss, Tensor? grad_log_prob, Tensor? grad_lse, Tensor? grad_entropy, Tensor self, "
            "Tensor whole" SOFTKERN_ROW_TENSORS_SCHEMA SOFTKERN_ROW_OPTIONS_SCHEMA
            ", SymInt first) -> Tensor",
            Tensor(const OptionalTensor& grad_loss, const OptionalTensor& grad_log_prob,
                   const OptionalTensor& grad_lse, const OptionalTensor& grad_entropy, const Tensor& self,
                   const Tensor& whole, SOFTKERN_ROW_TENSORS, const SymRowOptions& options,
                   c10::SymInt first));

// A linear layer and row_losses of its outputs, whose logits are never there as a whole
// (ops/linear_cross_entropy/).

/// What to compute gradients of, as bits.
enum Needs : int64_t { kNeedsInput = 1, kNeedsWeight = 2, kNeedsBias = 4 };

#define SOFTKERN_LINEAR_TENSORS                                 \
  const ::at::Tensor &input, const ::at::Tensor &linear_weight, \
      const ::softkern::OptionalTensor &linear_bias, SOFTKERN_ROW_TENSORS
#define SOFTKERN_LINEAR_TENSORS_SCHEMA \
  "Tensor input, Tensor linear_weight, Tensor? linear_bias" SOFTKERN_ROW_TENSORS_SCHEMA
#define SOFTKERN_LINEAR_GRADIENTS_SCHEMA "Tensor grad_input, Tensor grad_weight, Tensor grad_bias"

SOFTKERN_OP(
    softkern, linear_cross_entropy, 0,
    "(Tensor input, Tensor linear_weight, Tensor? "
    "linear_bias=None" SOFTKERN_ROW_TENSORS_SCHEMA_WITH_DEFAULTS SOFTKERN_LINEAR_OPTIONS_SCHEMA_WITH_DEFAULTS
    ") -> (" SOFTKERN_ROW_RESULTS_SCHEMA ")",
    RowResults(SOFTKERN_LINEAR_TENSORS, const SymLinearOptions& options));

/// With a plan that computes gradients in the forward, they are those for an upstream gradient of 1 of the
/// loss alone; gradients that `needs` lacks, and those of other plans, are empty. `numbers` are the
/// PartNumbers of the rows, (kPartNumbers, N), from which linear_cross_entropy_backward computes; empty
/// without needs.
SOFTKERN_OP(softkern, linear_cross_entropy_forward, 0,
            "(" SOFTKERN_LINEAR_TENSORS_SCHEMA SOFTKERN_LINEAR_OPTIONS_SCHEMA
            ", int needs) -> (" SOFTKERN_ROW_RESULTS_SCHEMA ", " SOFTKERN_LINEAR_GRADIENTS_SCHEMA
            ", Tensor numbers)",
            std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>(
                SOFTKERN_LINEAR_TENSORS, const SymLinearOptions& options, int64_t needs));

using LinearGradients = std::tuple<Tensor, Tensor, Tensor>;

/// The gradients for upstream gradients of the results.
SOFTKERN_OP(softkern, linear_cross_entropy_backward, 5,
            "(Tensor? grad_loss, Tensor? grad_log_prob, Tensor? grad_lse, Tensor? grad_entropy, Tensor "
            "numbers, " SOFTKERN_LINEAR_TENSORS_SCHEMA SOFTKERN_LINEAR_OPTIONS_SCHEMA
            ", int needs) -> (" SOFTKERN_LINEAR_GRADIENTS_SCHEMA ")",
            LinearGradients(const OptionalTensor& grad_loss, const OptionalTensor& grad_log_prob,
                            const OptionalTensor& grad_lse, const OptionalTensor& grad_entropy,
                            const Tensor& numbers, SOFTKERN_LINEAR_TENSORS, const SymLinearOptions& options,
                            int64_t needs));

/// As row_parts, for the rows of a linear layer. Its weight, bias and class probabilities are of the classes
/// from `first` on, class weights and valid_classes of whole rows.
SOFTKERN_OP(softkern, linear_row_parts, 0,
            "(" SOFTKERN_LINEAR_TENSORS_SCHEMA SOFTKERN_LINEAR_OPTIONS_SCHEMA
            ", SymInt first, SymInt tile_classes) -> (Tensor parts, Tensor hot_z, Tensor argmax)",
            std::tuple<Tensor, Tensor, Tensor>(SOFTKERN_LINEAR_TENSORS, const SymLinearOptions& options,
                                               c10::SymInt first, c10::SymInt tile_classes));

/// The gradients for upstream gradients of row_parts_results, from the numbers of whole rows. That of the
/// input is this weight's part of a sum, in the dtype that is computed in.
SOFTKERN_OP(softkern, linear_row_parts_backward, 5,
            "(Tensor? grad_loss, Tensor? grad_log_prob, Tensor? grad_lse, Tensor? grad_entropy, Tensor "
            "whole, " SOFTKERN_LINEAR_TENSORS_SCHEMA SOFTKERN_LINEAR_OPTIONS_SCHEMA
            ", SymInt first, int needs) -> (" SOFTKERN_LINEAR_GRADIENTS_SCHEMA ")",
            LinearGradients(const OptionalTensor& grad_loss, const OptionalTensor& grad_log_prob,
                            const OptionalTensor& grad_lse, const OptionalTensor& grad_entropy,
                            const Tensor& whole, SOFTKERN_LINEAR_TENSORS, const SymLinearOptions& options,
                            c10::SymInt first, int64_t needs));

/// Calls f(op) for the ops that a backend implements as one function each (Op::computed_by).
template <class F>
void for_each_softmax_op(F f) {
  f(softmax), f(log_softmax), f(softmax_backward), f(log_softmax_backward);
}
/// Calls f(op) for all ops.
template <class F>
void for_each_op(F f) {
  for_each_softmax_op(f);
  f(cross_entropy), f(cross_entropy_), f(cross_entropy_forward), f(cross_entropy_forward_);
  f(cross_entropy_backward), f(cross_entropy_backward_);
  f(row_losses), f(row_losses_), f(row_losses_forward), f(row_losses_forward_);
  f(row_losses_backward), f(row_losses_backward_);
  f(row_parts), f(row_parts_merge), f(row_parts_results), f(row_parts_backward);
  f(linear_cross_entropy), f(linear_cross_entropy_forward), f(linear_cross_entropy_backward);
  f(linear_row_parts), f(linear_row_parts_backward);
}

}  // namespace softkern
