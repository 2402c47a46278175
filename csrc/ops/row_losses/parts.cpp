// SPDX-License-Identifier: Apache-2.0
// The driver of row_parts and its relatives: rows whose classes are spread over several tensors.
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>

#include "../ops.h"
#include "driver.h"

namespace softkern {
namespace {

Tensor largest_classes(const RowCall& call, const Tensor& argmax) {
  const Tensor x = call.logits.gather(1, argmax.clamp_min(0).unsqueeze(1)).squeeze(1);
  // As the transformation: -inf stays, and 0 * inf is NaN.
  const Tensor is_nan =
      x.mul(call.options.logit_scale).isnan().logical_and(x.ne(-std::numeric_limits<double>::infinity()));
  const Tensor whole = argmax.add(argmax.ge(0), call.first);
  return at::where(is_nan.logical_and(argmax.ge(0)), -2 - whole, whole);
}

}  // namespace

void compute_part(const CrossEntropyKernels& kernels, const RowCall& call, const Tensor& numbers,
                  Tensor hot_z, Tensor argmax) {
  RowOutputs outputs;
  outputs.parts = numbers;
  if (hot_z.defined()) outputs.hot_z = new_numbers(call.logits, hot_z.sizes(), call.compute);
  outputs.argmax = argmax;
  kernels.row_losses(call, outputs, {}, Tensor());
  if (hot_z.defined()) hot_z.add_(outputs.hot_z);
  if (argmax.defined()) argmax.copy_(largest_classes(call, argmax));
}

namespace {

int64_t valid_of(const SymRowOptions& options) { return as_int(options.valid_classes); }

/// The call for logits of the classes from `first` on.
RowCall part_call(const CrossEntropyKernels& kernels, const RowTensors& of, const SymRowOptions& options,
                  int64_t first) {
  const Tensor& x = of.self;
  TORCH_CHECK(
      takes_tensor(x) && x.dim() == 2 && takes_options(options) && valid_of(options) >= 1,
      "softkern::row_parts: expected (N, C) logits and the number of valid classes of whole rows, got ",
      x.sizes(), " and ", options.valid_classes);
  const int64_t rows = x.size(0);
  const auto fits = [&](const Tensor& t, int64_t dims) {
    return !t.defined() || (t.dim() == dims && t.size(0) == rows && t.device() == x.device());
  };
  RowCall call{x, of.kind()};
  const bool several = call.kind == TargetKind::kIndices, one = call.kind == TargetKind::kIndex;
  TORCH_CHECK(
      fits(of.target, one ? 1 : 2) && fits(of.row_weight, 1) && fits(of.target_probs, 2) &&
          (call.kind != TargetKind::kProbabilities ||
           (of.target.sizes() == x.sizes() && of.target.scalar_type() == x.scalar_type())) &&
          (!of.target_probs.defined() || (several && of.target_probs.sizes() == of.target.sizes())) &&
          (!of.weight.defined() || (of.weight.dim() == 1 && of.weight.size(0) >= valid_of(options) &&
                                    of.weight.scalar_type() == x.scalar_type())),
      "softkern::row_parts: arguments that the kernels don't take; call softkern.parallel.cross_entropy, "
      "which checks them");
  call.options = known(options);
  call.dim = 1;
  call.layout = {{x.size(1), 1}, rows};  // also of rows without classes
  call.compute = compute_type(x);
  call.first = first;
  if (one || several) {
    call.target = of.target.to(kernels.index_type(of.target.scalar_type())).contiguous();
    call.per_row = one ? 1 : of.target.size(1);
  }
  if (call.kind == TargetKind::kProbabilities) call.probabilities = of.target;
  if (of.target_probs.defined()) call.target_probs = of.target_probs.to(call.compute).contiguous();
  if (of.weight.defined()) call.weight = of.weight.contiguous();
  if (of.row_weight.defined()) call.row_weight = of.row_weight.to(call.compute).contiguous();
  return call;
}

/// Raises if targets are out of range, as far as the host can know.
void check_targets(const CrossEntropyKernels& kernels, RowCall call) {
  call.options.reduction = kNone;
  divisor_of(kernels, call, Tensor());
}

std::tuple<Tensor, Tensor, Tensor> parts_of(const Tensor& self, SOFTKERN_ROW_TENSORS,
                                            const SymRowOptions& options, const c10::SymInt& from,
                                            const c10::SymInt& tile_classes) {
  const CrossEntropyKernels& kernels = cross_entropy_kernels(self.device());
  const RowTensors of(self, target, weight, row_weight, num_items, target_probs);
  const int64_t first = as_int(from), width = as_int(tile_classes);
  const RowCall all = part_call(kernels, of, options, first);
  check_targets(kernels, all);
  const int64_t rows = all.layout.rows, classes = all.classes(),
                tiles = std::max<int64_t>(1, (classes + width - 1) / width);
  const bool argmax = (all.options.outputs & kArgmax) != 0, several = all.kind == TargetKind::kIndices;
  Tensor numbers = new_numbers(self, {kPartNumbers, tiles, rows}, all.compute);
  Tensor hot_z = several ? at::zeros({rows, all.per_row}, self.options().dtype(all.compute))
                         : new_numbers(self, {0}, all.compute);
  Tensor largest = new_numbers(self, {argmax ? tiles : 0, rows}, at::kLong);
  if (classes == 0) {  // nothing for a kernel to read
    numbers.zero_();
    numbers[kPartMax].fill_(-std::numeric_limits<double>::infinity());
    largest.fill_(-1);
    return {numbers, hot_z, largest};
  }
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t begin = tile * width, count = std::min(width, classes - begin);
    const Tensor logits = self.narrow(1, begin, count);
    RowCall call{logits, all.kind};
    call.target = all.target;
    call.per_row = all.per_row;
    call.target_probs = all.target_probs;
    if (all.probabilities.defined()) call.probabilities = all.probabilities.narrow(1, begin, count);
    call.weight = all.weight;
    call.options = all.options;
    call.dim = 1;
    call.layout = {{count, 1}, rows};
    call.compute = all.compute;
    call.first = first + begin;
    compute_part(kernels, call, numbers.select(1, tile), several ? hot_z : Tensor(),
                 argmax ? largest[tile] : Tensor());
  }
  return {numbers, hot_z, largest};
}

Tensor merged_parts(const Tensor& self, const Tensor& parts) {
  RowCall call{self, TargetKind::kNone};
  call.options.valid_classes = 1;
  call.compute = compute_type(self);
  RowOutputs outputs;
  outputs.parts = new_numbers(self, {kPartNumbers, parts.size(2)}, call.compute);
  cross_entropy_kernels(self.device()).merge_rows(call, {parts.contiguous(), Tensor()}, outputs);
  return outputs.parts;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> results_of(const Tensor& self, const Tensor& parts,
                                                              const Tensor& hot_z, SOFTKERN_ROW_TENSORS,
                                                              const SymRowOptions& options) {
  const CrossEntropyKernels& kernels = cross_entropy_kernels(self.device());
  const RowTensors of(self, target, weight, row_weight, num_items, target_probs);
  const RowCall call = part_call(kernels, of, options, 0);
  const int64_t rows = call.layout.rows;
  const auto numbers = [&](int64_t output, at::IntArrayRef sizes) {
    const bool wanted = (call.options.outputs & output) != 0;
    return new_numbers(self, wanted ? sizes : at::IntArrayRef{0}, call.compute);
  };
  RowOutputs outputs;
  outputs.parts = new_numbers(self, {kPartNumbers, rows}, call.compute);
  outputs.log_prob =
      call.kind == TargetKind::kIndices ? numbers(kLogProb, {rows, call.per_row}) : numbers(kLogProb, {rows});
  outputs.lse = numbers(kLse, {rows});
  outputs.entropy = numbers(kEntropy, {rows});
  Tensor losses = numbers(kLoss, {rows});
  RowOutputs wanted = outputs;
  wanted.loss = losses;
  for (Tensor* x : {&wanted.loss, &wanted.log_prob, &wanted.lse, &wanted.entropy}) {
    if (x->size(0) != rows || x->numel() == 0) *x = Tensor();
  }
  const bool several = call.kind == TargetKind::kIndices;
  kernels.merge_rows(call, {parts.contiguous(), several ? hot_z.contiguous() : Tensor()}, wanted);
  Tensor loss = losses.to(self.scalar_type());
  if ((call.options.outputs & kLoss) != 0 && call.options.reduction != kNone) {
    const Divisor divisor = divisor_of(kernels, call, of.num_items);
    loss = new_numbers(self, {}, self.scalar_type());
    kernels.reduce(losses, divisor.divisor, {}, loss, Tensor());
  }
  return {loss, outputs.log_prob, outputs.lse, outputs.entropy, outputs.parts};
}

Tensor gradient_of(const OptionalTensor& grad_loss, const OptionalTensor& grad_log_prob,
                   const OptionalTensor& grad_lse, const OptionalTensor& grad_entropy, const Tensor& self,
                   const Tensor& whole, SOFTKERN_ROW_TENSORS, const SymRowOptions& options,
                   const c10::SymInt& first) {
  const CrossEntropyKernels& kernels = cross_entropy_kernels(self.device());
  const RowTensors of(self, target, weight, row_weight, num_items, target_probs);
  RowCall call = part_call(kernels, of, options, as_int(first));
  call.whole = whole.contiguous();
  const RowGradients upstream = upstream_of(
      grad_loss, grad_log_prob, grad_lse, grad_entropy, call.options, call.compute,
      [](const Tensor& g) { return g; }, [&] { return divisor_of(kernels, call, of.num_items); });
  Tensor grad = kernels.new_output(self);
  if (grad.numel() > 0) kernels.row_losses(call, {}, upstream, grad);
  return grad;
}

void register_parts(torch::Library& m) {
  m.impl(row_parts.kName, TORCH_FN(unpacked<&parts_of>));
  m.impl(row_parts_merge.kName, TORCH_FN(unpacked<&merged_parts>));
  m.impl(row_parts_results.kName, TORCH_FN(unpacked<&results_of>));
  m.impl(row_parts_backward.kName, TORCH_FN(unpacked<&gradient_of>));
}

}  // namespace

TORCH_LIBRARY_IMPL(softkern, CPU, m) { register_parts(m); }
TORCH_LIBRARY_IMPL(softkern, CUDA, m) { register_parts(m); }
TORCH_LIBRARY_IMPL(softkern, XPU, m) { register_parts(m); }

}  // namespace softkern
