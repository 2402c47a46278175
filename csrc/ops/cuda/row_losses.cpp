// SPDX-License-Identifier: Apache-2.0
// row_losses of CUDA tensors.
#include "row_losses.h"

#include <limits>

#include "launch.h"

namespace softkern::cuda {
namespace {

void* data_of(const Tensor& x) { return x.defined() ? x.data_ptr() : nullptr; }
void* const_data_of(const Tensor& x) { return x.defined() ? const_cast<void*>(x.const_data_ptr()) : nullptr; }

/// Whether the call has a loss, which its upstream gradients may be of.
bool has_loss(const RowCall& call) {
  return call.kind != TargetKind::kNone && (call.kind != TargetKind::kIndices || call.target_probs.defined());
}

/// Of each row. With several, none is ignored.
bool has_one_index(const RowCall& call) { return call.per_row == 1 && !call.target_probs.defined(); }
constexpr int64_t kNoIndex = std::numeric_limits<int64_t>::min();

PartNumbers part_numbers(void* at, const Tensor& x) { return {at, x.defined() ? x.stride(0) : 0}; }

/// Raises the exception of an index that is out of range.
[[noreturn]] void raise_index(const RowCall& call) {
  CrossEntropyCall plain{call.logits, call.target, call.weight, call.options,
                         true,        call.dim,    call.layout, call.compute};
  plain.layout.shape.classes = call.valid();
  if (call.kind == TargetKind::kIndices) plain.options.ignore_index = kNoIndex;
  raise_out_of_bounds(plain);
}

/// The arguments without logits, gradients, probabilities and numbers of parts.
RowLossArgs args_of(const RowCall& call, const RowOutputs& outputs) {
  RowLossArgs args{};
  args.first = call.first;
  if (call.target.defined() && call.per_row > 0) {
    args.target = call.target.const_data_ptr();
    args.target_type = index_type_of(call.target);
    args.per_row = has_one_index(call) ? 0 : call.per_row;
  }
  args.target_probs = const_data_of(call.target_probs);
  args.weight = const_data_of(call.weight);
  args.row_weight = const_data_of(call.row_weight);
  args.options = call.options;
  if (call.kind == TargetKind::kIndices) args.options.ignore_index = kNoIndex;
  args.results = {data_of(outputs.loss), data_of(outputs.log_prob), data_of(outputs.lse),
                  data_of(outputs.entropy)};
  return args;
}

void check_rows(const RowCall& call, const Outcome& outcome) {
  if (!kStopsDevice && outcome.error != nullptr && call.target.defined()) raise_index(call);
  check_launch(outcome);
}

}  // namespace

void row_losses(const RowCall& call, const RowOutputs& outputs, const RowGradients& upstream,
                const Tensor& grad) {
  if (call.layout.rows == 0) return;
  const OnDevice device(call.logits);
  Tensor keep_logits, keep_probabilities, hot_z = outputs.hot_z;
  RowLossArgs args = args_of(call, outputs);
  args.shape = call.valid_shape();
  args.classes = call.classes();
  args.rows = call.layout.rows;
  args.logits = readable_rows(call.logits, call.dim, keep_logits);
  if (call.probabilities.defined()) {
    args.probabilities = readable_rows(call.probabilities, call.dim, keep_probabilities);
  }
  args.whole = part_numbers(const_data_of(call.whole), call.whole);
  args.parts = part_numbers(data_of(outputs.parts), outputs.parts);
  args.argmax = static_cast<int64_t*>(data_of(outputs.argmax));
  args.correct = static_cast<bool*>(data_of(outputs.correct));
  if (grad.defined()) args.grad = *as_rows(grad, call.dim, grad.data_ptr());
  if (has_loss(call)) {
    args.grad_factor = upstream.factor.on_device.defined() ? 1 : upstream.factor.value;
    args.factor = upstream.factor.data<void>();
  } else if (call.whole.defined() || outputs.parts.defined()) {
    args.options.label_smoothing = 0;  // there is no mass that it could spread
  }
  args.upstream = {const_data_of(upstream.loss), const_data_of(upstream.log_prob),
                   const_data_of(upstream.lse), const_data_of(upstream.entropy)};
  if (args.per_row > 0) {
    if (!hot_z.defined()) hot_z = new_numbers(call.logits, {args.rows * args.per_row}, call.compute);
    args.hot_z = hot_z.data_ptr();
  }
  const Outcome outcome = with_element(element_type(call.logits), [&](auto element) {
    using T = decltype(element);
    return call.whole.defined() ? cuda::row_parts<T>(args, device.target())
                                : cuda::row_losses<T>(args, device.target());
  });
  check_rows(call, outcome);
  if (args.shape.classes == 0 && outputs.argmax.defined()) outputs.argmax.fill_(-1);
  // The z of the only index of a row is one of its numbers.
  if (hot_z.defined() && args.per_row == 0) hot_z.view(args.rows).copy_(outputs.parts[kPartHotZ]);
}

void merge_rows(const RowCall& call, const RowParts& parts, const RowOutputs& outputs) {
  RowMergeArgs args{};
  args.rows = args_of(call, outputs);
  args.rows.rows = parts.numbers.size(2);
  if (args.rows.rows == 0) return;
  const OnDevice device(call.logits);
  // Of whole rows: every class may be that of an index.
  args.rows.shape = {call.valid(), 1};
  args.rows.classes = call.valid();
  args.rows.hot_z = const_data_of(parts.hot_z);
  args.parts = parts.numbers.const_data_ptr();
  args.number_step = parts.numbers.stride(0);
  args.node_step = parts.numbers.stride(1);
  args.nodes = parts.numbers.size(1);
  args.merged = part_numbers(data_of(outputs.parts), outputs.parts);
  check_rows(call, with_element(element_type(call.logits), [&](auto element) {
               return cuda::row_merge<decltype(element)>(args, device.target());
             }));
}

}  // namespace softkern::cuda
