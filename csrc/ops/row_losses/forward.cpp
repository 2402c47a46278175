// SPDX-License-Identifier: Apache-2.0
// The driver of row_losses: checks, memory, divisor and reduction. A backend computes the rows
// (CrossEntropyKernels::row_losses), forward and backward.
#include <ATen/MemoryOverlap.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/reciprocal.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <limits>

#include "../ops.h"
#include "aten.h"
#include "driver.h"

namespace softkern {

RowCall checked_rows(const CrossEntropyKernels& kernels, const RowTensors& of, const SymRowOptions& options) {
  TORCH_CHECK(takes_row_losses(of, options),
              "softkern::row_losses_forward: arguments that the kernels don't take; call "
              "softkern.cross_entropy, which checks them");
  const int64_t dim = class_dim(of.self);
  RowCall call{of.self, of.kind()};
  call.options = known(options);
  call.dim = dim;
  call.layout = layout_of(of.self, dim);
  call.compute = compute_type(of.self);
  const int64_t valid = call.options.valid_classes, classes = call.classes();
  TORCH_CHECK_VALUE(valid == -1 || (valid >= 1 && valid <= classes),
                    "softkern::row_losses: expected valid_classes in [1, ", classes, "], got ", valid);
  call.options.valid_classes = valid == -1 ? classes : valid;
  // (N, K, d1...) becomes (rows, K).
  const auto by_row = [&](const Tensor& x) {
    return dim == x.dim() - 1 ? x.contiguous() : x.movedim(dim, -1).contiguous();
  };
  switch (call.kind) {
    case TargetKind::kNone:
      break;
    case TargetKind::kIndex:
      call.target = of.target.to(kernels.index_type(of.target.scalar_type())).contiguous();
      call.per_row = 1;
      break;
    case TargetKind::kIndices:
      call.target = by_row(of.target.to(kernels.index_type(of.target.scalar_type())));
      call.per_row = of.target.size(dim);
      if (of.target_probs.defined()) call.target_probs = by_row(of.target_probs.to(call.compute));
      break;
    case TargetKind::kProbabilities:
      call.probabilities = is_walkable(of.target, dim) ? of.target : of.target.contiguous();
      break;
  }
  if (of.weight.defined()) call.weight = of.weight.contiguous();
  if (of.row_weight.defined()) call.row_weight = of.row_weight.to(call.compute).contiguous();
  return call;
}

namespace {

/// The same call without softkern's own options: for the checks and the divisor of cross_entropy.
CrossEntropyCall as_cross_entropy(const RowCall& call) {
  CrossEntropyCall result{call.logits, call.target, call.weight, call.options,
                          true,        call.dim,    call.layout, call.compute};
  result.layout.shape.classes = call.valid();
  if (call.kind == TargetKind::kIndices) {
    result.layout.rows *= call.per_row;
    result.options.ignore_index = std::numeric_limits<int64_t>::min();  // with K indices none is ignored
    result.options.reduction = kNone;
  }
  return result;
}

Number number_of(const Tensor& x) {
  // The values of CPU tensors are read, whichever backend computes: nothing has to wait for them.
  return x.is_cpu() ? Number{x.item<double>()} : Number{0, x};
}

Divisor divisor_of_tensor(const Tensor& sum, at::ScalarType compute) {
  if (sum.is_cpu()) return divisor_of_number(sum.item<double>(), compute);
  const Tensor divisor = sum.to(at::kDouble);
  return {number_of(divisor), number_of(at::reciprocal(divisor).to(compute))};
}

}  // namespace

Divisor CrossEntropyKernels::weight_of_rows(const RowCall& call) const {
  const bool indices = call.kind == TargetKind::kIndex;
  Tensor weights = call.row_weight.flatten();
  if (indices) {
    const Tensor target = call.target.flatten().to(at::kLong);
    const Tensor counts = target.ne(call.options.ignore_index);
    if (call.weight.defined()) {
      weights =
          weights * call.weight.to(call.compute).index_select(0, target.masked_fill(counts.logical_not(), 0));
    }
    weights = at::where(counts, weights, at::zeros({}, weights.options()));
  }
  // In a fixed order, whatever the number of threads.
  Tensor sum = new_numbers(call.logits, {}, at::kDouble);
  reduce(weights.contiguous(), {1}, {}, sum, Tensor());
  if (indices) {
    // As in the loss without row weights: 0/0 without a weight, even if label smoothing makes it x/0.
    sum = at::where(weights.ne(0).any(), sum,
                    at::scalar_tensor(std::numeric_limits<double>::quiet_NaN(), sum.options()));
  }
  return divisor_of_tensor(sum, call.compute);
}

Divisor divisor_of(const CrossEntropyKernels& kernels, const RowCall& call, const Tensor& num_items) {
  const bool mean = call.options.reduction == kMean && (call.options.outputs & kLoss) != 0;
  Divisor result{{1}, {1}};
  if (call.target.defined()) {
    CrossEntropyCall plain = as_cross_entropy(call);
    if (!mean || num_items.defined() || call.row_weight.defined()) plain.options.reduction = kNone;
    result = kernels.check_targets(plain);
  }
  if (!mean) return {{1}, {1}};
  if (num_items.defined()) return divisor_of_tensor(num_items, call.compute);
  if (!call.row_weight.defined()) {
    if (call.kind == TargetKind::kIndex) return result;
    const auto rows = static_cast<double>(call.layout.rows);
    return {{rows}, {1 / rows}};
  }
  return kernels.weight_of_rows(call);
}

Number factor_of(const Tensor& grad_loss, const Divisor& divisor, at::ScalarType compute) {
  const Number& reciprocal = divisor.reciprocal;
  const Tensor g = grad_loss.to(compute).reshape({});
  return number_of(reciprocal.on_device.defined() ? g * reciprocal.on_device : g * reciprocal.value);
}

namespace {

/// The sizes of row numbers as results: without the class dimension, or with K classes.
at::DimVector result_sizes(const RowCall& call, bool log_prob) {
  at::DimVector sizes(call.logits.sizes());
  if (log_prob && call.kind == TargetKind::kIndices) {
    sizes[static_cast<size_t>(call.dim)] = call.per_row;
  } else {
    sizes.erase(sizes.begin() + call.dim);
  }
  return sizes;
}

/// Numbers (rows, K) of a kernel in the shape of the result.
Tensor as_result(const RowCall& call, const Tensor& numbers, bool log_prob) {
  const at::DimVector sizes = result_sizes(call, log_prob);
  const bool is_last = call.dim == call.logits.dim() - 1;
  if (!log_prob || call.kind != TargetKind::kIndices || is_last) return numbers.view(sizes);
  at::DimVector last(sizes);
  last.erase(last.begin() + call.dim);
  last.push_back(call.per_row);
  return numbers.view(last).movedim(-1, call.dim).clone(at::MemoryFormat::Contiguous);
}

std::tuple<RowResults, Tensor> compute_rows(const RowTensors& of, const SymRowOptions& options,
                                            bool need_grad, bool over_logits) {
  const CrossEntropyKernels& kernels = cross_entropy_kernels(of.self.device());
  const RowCall call = checked_rows(kernels, of, options);
  const Divisor divisor = divisor_of(kernels, call, of.num_items);
  const auto wanted = [&](int64_t output) { return (call.options.outputs & output) != 0; };
  const int64_t rows = call.layout.rows;
  const auto numbers = [&](int64_t output, int64_t count, at::ScalarType type) {
    return wanted(output) ? new_numbers(of.self, {count}, type) : Tensor();
  };
  RowOutputs outputs;
  outputs.loss = numbers(kLoss, rows, call.compute);
  outputs.log_prob = numbers(kLogProb, rows * call.per_row, call.compute);
  outputs.lse = numbers(kLse, rows, call.compute);
  outputs.entropy = numbers(kEntropy, rows, call.compute);
  outputs.argmax = numbers(kArgmax, rows, at::kLong);
  outputs.correct = numbers(kCorrect, rows, at::kBool);
  Tensor grad;
  if (over_logits) {
    grad = of.self;
  } else if (need_grad) {
    grad = kernels.new_output(of.self);
  }
  RowGradients upstream;
  upstream.factor = grad.defined() && wanted(kLoss) ? divisor.reciprocal : Number{0};
  kernels.row_losses(call, outputs, upstream, grad);

  const auto result = [&](const Tensor& x, at::ScalarType type, bool log_prob = false) {
    return x.defined() ? as_result(call, x, log_prob) : at::empty({0}, of.self.options().dtype(type));
  };
  Tensor loss;
  if (wanted(kLoss) && call.options.reduction != kNone) {
    loss = new_numbers(of.self, {}, of.self.scalar_type());
    kernels.reduce(outputs.loss, divisor.divisor, {}, loss, Tensor());
  } else {
    loss = result(outputs.loss, of.self.scalar_type()).to(of.self.scalar_type());
  }
  return {{loss, result(outputs.log_prob, call.compute, true), result(outputs.lse, call.compute),
           result(outputs.entropy, call.compute), result(outputs.argmax, at::kLong),
           result(outputs.correct, at::kBool)},
          grad};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> rows_forward(const Tensor& self,
                                                                                SOFTKERN_ROW_TENSORS,
                                                                                const SymRowOptions& options,
                                                                                bool need_grad) {
  const RowTensors of(self, target, weight, row_weight, num_items, target_probs);
  auto [results, grad] = compute_rows(of, options, need_grad, false);
  if (!need_grad) grad = at::empty({0}, self.options());
  return std::tuple_cat(results, std::tuple(grad));
}

void check_overwritable(const Tensor& logits, const char* op) {
  TORCH_CHECK(
      is_walkable(logits, class_dim(logits)) && at::has_internal_overlap(logits) != at::MemOverlap::Yes,
      "softkern::", op,
      ": expected logits whose elements have memory of their own, in steps that the kernels can walk; got "
      "strides ",
      logits.strides());
}

RowResults rows_forward_(Tensor self, SOFTKERN_ROW_TENSORS, const SymRowOptions& options) {
  check_overwritable(self, "row_losses_forward_");
  const RowTensors of(self, target, weight, row_weight, num_items, target_probs);
  return std::get<0>(compute_rows(of, options, true, true));
}

void differentiate(const OptionalTensor& grad_loss, const OptionalTensor& grad_log_prob,
                   const OptionalTensor& grad_lse, const OptionalTensor& grad_entropy, const RowTensors& of,
                   const SymRowOptions& options, const Tensor& grad) {
  const CrossEntropyKernels& kernels = cross_entropy_kernels(of.self.device());
  const RowCall call = checked_rows(kernels, of, options);
  const auto by_row = [&](const OptionalTensor& g, const char* name, bool log_prob = false) {
    if (!g.has_value() || !g->defined()) return Tensor();
    const at::DimVector sizes = result_sizes(call, log_prob);
    TORCH_CHECK(g->sizes() == at::IntArrayRef(sizes) && takes_dtype(g->scalar_type()) &&
                    g->device() == of.self.device(),
                "softkern::row_losses_backward: expected ", name, " of shape ", at::IntArrayRef(sizes),
                " on ", of.self.device(), ", got ", g->sizes(), " of ", g->scalar_type(), " on ",
                g->device());
    Tensor numbers = g->to(call.compute);
    if (log_prob && call.kind == TargetKind::kIndices) numbers = numbers.movedim(call.dim, -1);
    return numbers.contiguous();
  };
  RowGradients upstream;
  upstream.log_prob = by_row(grad_log_prob, "grad_log_prob", true);
  upstream.lse = by_row(grad_lse, "grad_lse");
  upstream.entropy = by_row(grad_entropy, "grad_entropy");
  if (grad_loss.has_value() && grad_loss->defined()) {
    const Divisor divisor = divisor_of(kernels, call, of.num_items);
    if (call.options.reduction == kNone) {
      upstream.loss = by_row(grad_loss, "grad_loss");
      upstream.factor = {1};
    } else {
      TORCH_CHECK(grad_loss->numel() == 1,
                  "softkern::row_losses_backward: expected grad_loss of one element, got ",
                  grad_loss->sizes());
      upstream.factor = factor_of(*grad_loss, divisor, call.compute);
    }
  } else if (call.target.defined()) {
    CrossEntropyCall plain = as_cross_entropy(call);
    plain.options.reduction = kNone;
    kernels.check_targets(plain);
  }
  kernels.row_losses(call, {}, upstream, grad);
}

Tensor rows_backward(const OptionalTensor& grad_loss, const OptionalTensor& grad_log_prob,
                     const OptionalTensor& grad_lse, const OptionalTensor& grad_entropy, const Tensor& self,
                     SOFTKERN_ROW_TENSORS, const SymRowOptions& options) {
  Tensor grad = cross_entropy_kernels(self.device()).new_output(self);
  differentiate(grad_loss, grad_log_prob, grad_lse, grad_entropy,
                {self, target, weight, row_weight, num_items, target_probs}, options, grad);
  return grad;
}

void rows_backward_(const OptionalTensor& grad_loss, const OptionalTensor& grad_log_prob,
                    const OptionalTensor& grad_lse, const OptionalTensor& grad_entropy, Tensor self,
                    SOFTKERN_ROW_TENSORS, const SymRowOptions& options) {
  check_overwritable(self, "row_losses_backward_");
  differentiate(grad_loss, grad_log_prob, grad_lse, grad_entropy,
                {self, target, weight, row_weight, num_items, target_probs}, options, self);
}

// Called in inference mode, under no_grad, and for devices without kernels.
RowResults rows_below_autograd(const Tensor& self, SOFTKERN_ROW_TENSORS, const SymRowOptions& options) {
  const RowTensors of(self, target, weight, row_weight, num_items, target_probs);
  if (!takes_row_losses(of, options)) return row_losses_by_aten(of, options);
  auto [loss, log_prob, lse, entropy, argmax, correct, grad] =
      row_losses_forward(self, target, weight, row_weight, num_items, target_probs, options, false);
  return {loss, log_prob, lse, entropy, argmax, correct};
}

// No gradient is recorded here, so the logits are not overwritten.
RowResults rows_below_autograd_(Tensor self, SOFTKERN_ROW_TENSORS, const SymRowOptions& options) {
  return row_losses(self, target, weight, row_weight, num_items, target_probs, options);
}

void register_row_losses(torch::Library& m) {
  m.impl(row_losses_forward.kName, TORCH_FN(unpacked<&rows_forward>));
  m.impl(row_losses_forward_.kName, TORCH_FN(unpacked<&rows_forward_>));
  m.impl(row_losses_backward.kName, TORCH_FN(unpacked<&rows_backward>));
  m.impl(row_losses_backward_.kName, TORCH_FN(unpacked<&rows_backward_>));
}

}  // namespace

TORCH_LIBRARY_IMPL(softkern, CompositeExplicitAutograd, m) {
  m.impl(row_losses.kName, TORCH_FN(unpacked<&rows_below_autograd>));
  m.impl(row_losses_.kName, TORCH_FN(unpacked<&rows_below_autograd_>));
}

TORCH_LIBRARY_IMPL(softkern, CPU, m) { register_row_losses(m); }
TORCH_LIBRARY_IMPL(softkern, CUDA, m) { register_row_losses(m); }
TORCH_LIBRARY_IMPL(softkern, XPU, m) { register_row_losses(m); }

}  // namespace softkern
