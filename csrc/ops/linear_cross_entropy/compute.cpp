// SPDX-License-Identifier: Apache-2.0
#include "compute.h"

#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>

#include "buffer.h"

namespace softkern {
namespace {

RowOutputs new_outputs(const LinearCall& call, bool wants_numbers) {
  const auto numbers = [&](int64_t output, at::ScalarType type) {
    return (call.options.outputs & output) != 0 ? new_numbers(call.input, {call.rows}, type) : Tensor();
  };
  RowOutputs outputs;
  outputs.loss = numbers(kLoss, call.compute);
  outputs.log_prob = numbers(kLogProb, call.compute);
  if (outputs.log_prob.defined() && call.per_row() > 1) {
    outputs.log_prob = new_numbers(call.input, {call.rows, call.per_row()}, call.compute);
  }
  outputs.lse = numbers(kLse, call.compute);
  outputs.entropy = numbers(kEntropy, call.compute);
  outputs.argmax = numbers(kArgmax, at::kLong);
  outputs.correct = numbers(kCorrect, at::kBool);
  if (wants_numbers) outputs.parts = new_numbers(call.input, {kPartNumbers, call.rows}, call.compute);
  return outputs;
}

/// Rows [first, first + count) of the outputs.
RowOutputs some(const RowOutputs& all, int64_t first, int64_t count) {
  const auto part = [&](const Tensor& x) { return x.defined() ? x.narrow(0, first, count) : x; };
  RowOutputs result{part(all.loss),    part(all.log_prob), part(all.lse),
                    part(all.entropy), part(all.argmax),   part(all.correct)};
  if (all.parts.defined()) result.parts = all.parts.narrow(1, first, count);
  return result;
}

/// The gradient of the weight, of which each class is written once, or of which rows are added up.
class WeightGradient {
 public:
  WeightGradient(const LinearCall& call, bool adds_up)
      : call_(call),
        result_(call.fresh({call.all_classes(), call.features()}, call.input.scalar_type())),
        valid_(result_.narrow(0, 0, call.classes)),
        sum_(adds_up && call.compute != call.input.scalar_type() ? call.fresh(valid_.sizes(), call.compute)
                                                                 : valid_) {}
  /// Adds the products of some rows.
  void add(const Tensor& dz, const Tensor& x) {
    call_.products.weight_gradient(dz, x, sum_, begun_);
    begun_ = true;
  }
  /// Writes that of some classes.
  void set(int64_t first, const Tensor& dz, const Tensor& x) const {
    call_.products.weight_gradient(dz, x, valid_.narrow(0, first, dz.size(1)), false);
  }
  Tensor classes(int64_t first, int64_t count) const { return valid_.narrow(0, first, count); }
  /// Classes that are padding get zeros.
  Tensor finished() {
    if (call_.rows == 0) return result_.zero_();
    if (!sum_.is_same(valid_)) valid_.copy_(sum_);
    if (call_.classes < call_.all_classes()) {
      result_.narrow(0, call_.classes, call_.all_classes() - call_.classes).zero_();
    }
    return result_;
  }

 private:
  const LinearCall& call_;
  Tensor result_, valid_, sum_;
  bool begun_ = false;
};

/// The gradient of the bias: sums in the compute type.
class BiasGradient {
 public:
  explicit BiasGradient(const LinearCall& call)
      : sum_(at::zeros({call.all_classes()}, call.input.options().dtype(call.compute))),
        type_(call.input.scalar_type()) {}
  void add(int64_t first, const Tensor& dz) { sum_.narrow(0, first, dz.size(1)).add_(dz.sum(0)); }
  Tensor finished() const { return sum_.to(type_); }

 private:
  Tensor sum_;
  at::ScalarType type_;
};

}  // namespace

Computed compute_forward(const LinearCall& call, const LinearPlan& plan, int64_t needs, bool wants_numbers) {
  Computed result{new_outputs(call, wants_numbers)};
  const auto needed = [&](int64_t need) { return (needs & need) != 0; };
  const int64_t rows = call.rows, classes = call.classes, chunk = std::min(plan.chunk_rows, rows);
  const Tensor matrix = call.matrix(0, classes), bias = call.bias(0, classes);
  const bool narrows = needs != 0 && call.products.narrows();
  const int64_t waiting = narrows ? waiting_rows(plan, rows) : 0;
  LogitsBuffer buffer(call, chunk, classes, waiting);
  std::optional<WeightGradient> of_weight;
  std::optional<BiasGradient> of_bias;
  if (needed(kNeedsInput)) result.grad_input = call.fresh({rows, call.features()}, call.input.scalar_type());
  if (needed(kNeedsWeight)) of_weight.emplace(call, !narrows || waiting < rows);
  if (needed(kNeedsBias)) of_bias.emplace(call);

  for (int64_t i = 0; rows > 0 && i < plan.chunks; ++i) {
    const int64_t first = i * rows / plan.chunks, end = (i + 1) * rows / plan.chunks, count = end - first;
    const Tensor logits = buffer.logits(count, classes);
    call.products.logits(call.input.narrow(0, first, count), matrix, bias, logits);
    RowGradients upstream;
    upstream.factor = needs != 0 ? call.divisor.reciprocal : Number{0};
    call.kernels.row_losses(call.rows_of(logits, first, count), some(result.outputs, first, count), upstream,
                            needs != 0 ? logits : Tensor());
    if (needs == 0) continue;
    if (of_bias.has_value()) of_bias->add(0, logits);
    Tensor dz = logits;
    if (narrows) {
      buffer.narrow(logits);
      if (end < rows && buffer.waiting() + std::min(chunk, rows - end) <= waiting) continue;
      dz = buffer.taken(classes);
    }
    const int64_t begun = end - dz.size(0);
    if (needed(kNeedsInput)) {
      call.products.input_gradient(dz, matrix, result.grad_input.narrow(0, begun, dz.size(0)), false);
    }
    if (of_weight.has_value()) of_weight->add(dz, call.input.narrow(0, begun, dz.size(0)));
  }
  if (of_weight.has_value()) result.grad_weight = of_weight->finished();
  if (of_bias.has_value()) result.grad_bias = of_bias->finished();
  return result;
}

namespace {

/// The power of two that float16 gradients of logits are multiplied by, because their range is short, and
/// what products of them have to be multiplied by. It never leaves the device.
std::pair<Tensor, Tensor> power_for(const Tensor& dz) {
  // The largest number comes near 2^15.
  const Tensor power = dz.abs().amax().log2().neg().floor().clamp(-60, 60).add(14).nan_to_num(14.0);
  return {power.exp2(), power.neg().exp2()};
}

}  // namespace

Computed compute_backward(const LinearCall& call, const LinearPlan& plan, const RowGradients& upstream,
                          const Tensor& numbers, int64_t needs) {
  Computed result;
  const auto needed = [&](int64_t need) { return (needs & need) != 0; };
  const int64_t rows = call.rows, tile = std::min(plan.tile_classes, call.classes);
  const bool narrows = call.products.narrows(), scales = narrows && call.input.scalar_type() == at::kHalf;
  LogitsBuffer buffer(call, rows, tile, narrows ? rows : 0);
  std::optional<WeightGradient> of_weight;
  std::optional<BiasGradient> of_bias;
  Tensor sum;  // of the input's gradient
  if (needed(kNeedsInput)) sum = at::zeros({rows, call.features()}, call.input.options().dtype(call.compute));
  if (needed(kNeedsWeight)) of_weight.emplace(call, false);
  if (needed(kNeedsBias)) of_bias.emplace(call);
  for (int64_t first = 0; rows > 0 && first < call.classes; first += tile) {
    const int64_t count = std::min(tile, call.classes - first);
    const Tensor logits = buffer.logits(rows, count), matrix = call.matrix(first, count);
    call.products.logits(call.input, matrix, call.bias(first, count), logits);
    call.kernels.row_losses(call.classes_of(logits, first, numbers), {}, upstream, logits);
    if (of_bias.has_value()) of_bias->add(first, logits);
    Tensor dz = logits, inverse;
    if (scales) {
      Tensor power;
      std::tie(power, inverse) = power_for(logits);
      logits.mul_(power);
    }
    if (narrows) {
      buffer.narrow(logits);
      dz = buffer.taken(count);
    }
    if (scales) {
      if (of_weight.has_value()) {
        const Tensor product = new_numbers(call.input, {count, call.features()}, call.compute);
        call.products.weight_gradient(dz, call.input, product, false);
        of_weight->classes(first, count).copy_(product.mul_(inverse));
      }
      if (sum.defined()) {
        const Tensor product = new_numbers(call.input, sum.sizes(), call.compute);
        call.products.input_gradient(dz, matrix, product, false);
        sum.add_(product.mul_(inverse));
      }
      continue;
    }
    if (of_weight.has_value()) of_weight->set(first, dz, call.input);
    if (sum.defined()) call.products.input_gradient(dz, matrix, sum, first > 0);
  }
  result.grad_input = sum;
  if (of_weight.has_value()) result.grad_weight = of_weight->finished();
  if (of_bias.has_value()) result.grad_bias = of_bias->finished();
  return result;
}

ComputedParts compute_parts(const LinearCall& call, const LinearPlan& plan, int64_t tile_classes) {
  const int64_t rows = call.rows, all = call.all_classes(), classes = call.classes;
  const int64_t tiles = std::max<int64_t>(1, (all + tile_classes - 1) / tile_classes);
  const bool argmax = (call.options.outputs & kArgmax) != 0, several = call.kind() == TargetKind::kIndices;
  ComputedParts parts{
      new_numbers(call.input, {kPartNumbers, tiles, rows}, call.compute),
      at::zeros({several ? rows : 0, call.per_row()}, call.input.options().dtype(call.compute)),
      new_numbers(call.input, {argmax ? tiles : 0, rows}, at::kLong)};
  if (!several) parts.hot_z = parts.hot_z.flatten();
  // Tiles of padding, and ranks without classes, have nothing for a kernel to read.
  parts.numbers.zero_();
  parts.numbers[kPartMax].fill_(-std::numeric_limits<double>::infinity());
  parts.argmax.fill_(-1);
  if (classes == 0) return parts;
  const Tensor matrix = call.matrix(0, classes), bias = call.bias(0, classes);
  LogitsBuffer buffer(call, std::min(plan.chunk_rows, rows), classes, 0);
  for (int64_t i = 0; rows > 0 && i < plan.chunks; ++i) {
    const int64_t first = i * rows / plan.chunks, count = (i + 1) * rows / plan.chunks - first;
    const Tensor logits = buffer.logits(count, classes);
    call.products.logits(call.input.narrow(0, first, count), matrix, bias, logits);
    for (int64_t tile = 0; tile * tile_classes < classes; ++tile) {
      const int64_t begin = tile * tile_classes, width = std::min(tile_classes, classes - begin);
      const Tensor of_tile = logits.narrow(1, begin, width);
      compute_part(call.kernels, call.part(of_tile, first, count, begin),
                   parts.numbers.select(1, tile).narrow(1, first, count),
                   several ? parts.hot_z.narrow(0, first, count) : Tensor(),
                   argmax ? parts.argmax[tile].narrow(0, first, count) : Tensor());
    }
  }
  return parts;
}

}  // namespace softkern
