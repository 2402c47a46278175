// SPDX-License-Identifier: Apache-2.0
// row_losses of CPU tensors.
#include "row_losses.h"

#include <limits>
#include <vector>

#include "launch.h"

namespace softkern::cpu {
namespace {

/// In one loop: ATen's ops would take longer than a tenth of the rows themselves.
template <class A>
double total_weight(const RowCall& call, double (*sum)(const void* numbers, int64_t n)) {
  const A* const row_weight = call.row_weight.const_data_ptr<A>();
  const int64_t rows = call.layout.rows;
  if (call.kind != TargetKind::kIndex) return sum(row_weight, rows);
  const Tensor keep = call.weight.defined() ? call.weight.to(call.compute) : Tensor();
  const A* const weight = keep.defined() ? keep.const_data_ptr<A>() : nullptr;
  const int64_t* const y = call.target.const_data_ptr<int64_t>();
  std::vector<A> own(rows);
  bool weighs = false;
  for (int64_t r = 0; r < rows; ++r) {
    const bool counts = y[r] != call.options.ignore_index;
    if (counts) own[r] = weight == nullptr ? row_weight[r] : row_weight[r] * weight[y[r]];
    weighs = weighs || own[r] != 0;
  }
  // As in the loss without row weights: 0/0 without a weight, even if label smoothing makes it x/0.
  return weighs ? sum(own.data(), rows) : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace

Divisor weight_of_rows(const RowCall& call) {
  const auto sum = active().by_type[element_type(call.logits)]->sum_losses;
  const double total =
      call.compute == at::kDouble ? total_weight<double>(call, sum) : total_weight<float>(call, sum);
  return divisor_of_number(total, call.compute);
}

namespace {

const void* data(const Tensor& x) { return x.defined() ? x.const_data_ptr() : nullptr; }
void* memory(const Tensor& x) { return x.defined() ? x.data_ptr() : nullptr; }

/// The arguments without logits, gradients and class probabilities.
RowLossArgs args_of(const RowCall& call, const RowOutputs& outputs) {
  RowLossArgs args{};
  args.shape = call.layout.shape;
  args.valid = call.valid_shape().classes;
  args.first = call.first;
  args.row_valid = call.valid();
  args.whole = data(call.whole);
  args.parts = memory(outputs.parts);
  if (call.whole.defined()) args.whole_step = call.whole.stride(0);
  if (outputs.parts.defined()) args.parts_step = outputs.parts.stride(0);
  args.hot_z = memory(outputs.hot_z);
  args.target = static_cast<const int64_t*>(data(call.target));
  args.per_row = call.per_row;
  args.target_probs = data(call.target_probs);
  args.weight = data(call.weight);
  args.row_weight = data(call.row_weight);
  args.options = call.options;
  args.loss = memory(outputs.loss);
  args.log_prob = memory(outputs.log_prob);
  args.lse = memory(outputs.lse);
  args.entropy = memory(outputs.entropy);
  args.argmax = static_cast<int64_t*>(memory(outputs.argmax));
  args.correct = static_cast<bool*>(memory(outputs.correct));
  return args;
}

}  // namespace

void merge_rows(const RowCall& call, const RowParts& parts, const RowOutputs& outputs) {
  RowMergeArgs args{};
  args.rows = args_of(call, outputs);
  // Only whether there are any counts here. Those of a rank without classes have no memory.
  args.rows.probabilities.data = call.probabilities.defined() ? parts.numbers.data_ptr() : nullptr;
  args.parts = parts.numbers.const_data_ptr();
  args.number_step = parts.numbers.stride(0);
  args.node_step = parts.numbers.stride(1);
  args.nodes = parts.numbers.size(1);
  args.hot_z = data(parts.hot_z);
  // A merge takes about as long as 16 classes.
  const Layout layout{{16 * args.nodes, 1}, parts.numbers.size(2)};
  run(active().by_type[element_type(call.logits)]->row_merge, args, layout);
}

void row_losses(const RowCall& call, const RowOutputs& outputs, const RowGradients& upstream,
                const Tensor& grad) {
  Tensor keep_logits, keep_probabilities;
  RowLossArgs args = args_of(call, outputs);
  args.logits = readable_rows(call.logits, call.dim, keep_logits);
  if (call.probabilities.defined()) {
    args.probabilities = readable_rows(call.probabilities, call.dim, keep_probabilities);
  }
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
