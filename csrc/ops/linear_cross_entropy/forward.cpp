// SPDX-License-Identifier: Apache-2.0
// The driver of linear_cross_entropy, once for all backends: matrix products (products.h) and the backend's
// step row_losses, which computes over the logits of some rows or classes.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "aten.h"
#include "compute.h"

namespace softkern {
namespace {

Tensor or_empty(const Tensor& x, const Tensor& like, at::ScalarType type) {
  return x.defined() ? x : at::empty({0}, like.options().dtype(type));
}

RowGradients upstream_of(const LinearCall& call, const OptionalTensor& grad_loss,
                         const OptionalTensor& grad_log_prob, const OptionalTensor& grad_lse,
                         const OptionalTensor& grad_entropy) {
  return upstream_of(
      grad_loss, grad_log_prob, grad_lse, grad_entropy, call.options, call.compute,
      [&](const Tensor& g) { return call.kept(g); }, [&] { return call.divisor; });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> linear_forward(
    SOFTKERN_LINEAR_TENSORS, const SymLinearOptions& options, int64_t needs) {
  const LinearTensors of(input, linear_weight, linear_bias, target, weight, row_weight, num_items,
                         target_probs);
  TORCH_CHECK(takes_linear_cross_entropy(of, options),
              "softkern::linear_cross_entropy_forward: arguments that the kernels don't take; call "
              "softkern.linear_cross_entropy, which checks them");
  const LinearCall call(of, options);
  const bool fast = call.prefers_fast(needs);
  const LinearPlan pieces = call.pieces_of(fast ? kFastPlan : kLeanPlan, needs);
  const Computed computed = compute_forward(call, pieces, fast ? needs : 0, needs != 0);

  const RowOutputs& rows = computed.outputs;
  const at::ScalarType type = input.scalar_type(), of_loss = options.wide_loss != 0 ? call.compute : type;
  Tensor loss;
  if (rows.loss.defined() && options.reduction != kNone) {
    loss = new_numbers(input, {}, of_loss);
    call.kernels.reduce(rows.loss, call.divisor.divisor, {}, loss, Tensor());
  } else {
    loss = or_empty(call.spread(rows.loss, 0), input, of_loss).to(of_loss);
  }
  return {loss,
          or_empty(call.spread(rows.log_prob, 0), input, call.compute),
          or_empty(call.spread(rows.lse, 0), input, call.compute),
          or_empty(call.spread(rows.entropy, 0), input, call.compute),
          or_empty(call.spread(rows.argmax, -1), input, at::kLong),
          or_empty(call.spread(rows.correct, 0), input, at::kBool),
          or_empty(call.spread(computed.grad_input, 0), input, type),
          or_empty(computed.grad_weight, input, type),
          or_empty(computed.grad_bias, input, type),
          or_empty(call.spread(rows.parts, 0, 1), input, call.compute)};
}

LinearGradients linear_backward(const OptionalTensor& grad_loss, const OptionalTensor& grad_log_prob,
                                const OptionalTensor& grad_lse, const OptionalTensor& grad_entropy,
                                const Tensor& numbers, SOFTKERN_LINEAR_TENSORS,
                                const SymLinearOptions& options, int64_t needs) {
  const LinearTensors of(input, linear_weight, linear_bias, target, weight, row_weight, num_items,
                         target_probs);
  TORCH_CHECK(takes_linear_cross_entropy(of, options),
              "softkern::linear_cross_entropy_backward: arguments that the kernels don't take");
  const LinearCall call(of, options);
  const LinearPlan plan = call.pieces_of(kLeanPlan, needs);
  const RowGradients upstream = upstream_of(call, grad_loss, grad_log_prob, grad_lse, grad_entropy);
  const Computed computed = compute_backward(call, plan, upstream, call.kept(numbers, 1), needs);
  const at::ScalarType type = input.scalar_type();
  return {or_empty(call.spread(computed.grad_input, 0), input, type).to(type),
          or_empty(computed.grad_weight, input, type), or_empty(computed.grad_bias, input, type)};
}

void check_part(const LinearTensors& of, const SymLinearOptions& options) {
  TORCH_CHECK(takes_linear_cross_entropy(of, options),
              "softkern::linear_row_parts: arguments that the kernels don't take; call "
              "softkern.parallel.linear_cross_entropy, which checks them");
}

/// The numbers of some classes of whole rows. Raises for targets that are no classes of whole rows.
std::tuple<Tensor, Tensor, Tensor> linear_parts(SOFTKERN_LINEAR_TENSORS, const SymLinearOptions& options,
                                                const c10::SymInt& first, const c10::SymInt& tile_classes) {
  const LinearTensors of(input, linear_weight, linear_bias, target, weight, row_weight, num_items,
                         target_probs, as_int(options.valid_classes));
  check_part(of, options);
  const LinearCall call(of, options, as_int(first));
  const ComputedParts parts = compute_parts(call, call.pieces_of(kLeanPlan, 0), as_int(tile_classes));
  return {call.spread(parts.numbers, 0, 2), parts.hot_z, call.spread(parts.argmax, -1, 1)};
}

LinearGradients linear_parts_backward(const OptionalTensor& grad_loss, const OptionalTensor& grad_log_prob,
                                      const OptionalTensor& grad_lse, const OptionalTensor& grad_entropy,
                                      const Tensor& whole, SOFTKERN_LINEAR_TENSORS,
                                      const SymLinearOptions& options, const c10::SymInt& first,
                                      int64_t needs) {
  const LinearTensors of(input, linear_weight, linear_bias, target, weight, row_weight, num_items,
                         target_probs, as_int(options.valid_classes));
  check_part(of, options);
  const LinearCall call(of, options, as_int(first));
  const RowGradients upstream = upstream_of(call, grad_loss, grad_log_prob, grad_lse, grad_entropy);
  const Computed computed =
      compute_backward(call, call.pieces_of(kLeanPlan, needs), upstream, call.kept(whole, 1), needs);
  return {or_empty(call.spread(computed.grad_input, 0), input, call.compute),
          or_empty(computed.grad_weight, input, input.scalar_type()),
          or_empty(computed.grad_bias, input, input.scalar_type())};
}

// Called in inference mode, under no_grad, and for devices without kernels.
RowResults linear_below_autograd(SOFTKERN_LINEAR_TENSORS, const SymLinearOptions& options) {
  const LinearTensors of(input, linear_weight, linear_bias, target, weight, row_weight, num_items,
                         target_probs);
  if (!takes_linear_cross_entropy(of, options)) return linear_cross_entropy_of_logits(of, options);
  const auto all = linear_cross_entropy_forward(input, linear_weight, linear_bias, target, weight, row_weight,
                                                num_items, target_probs, with_chosen_plan(of, options, 0), 0);
  return {std::get<0>(all), std::get<1>(all), std::get<2>(all),
          std::get<3>(all), std::get<4>(all), std::get<5>(all)};
}

void register_linear(torch::Library& m) {
  m.impl(linear_cross_entropy_forward.kName, TORCH_FN(unpacked<&linear_forward>));
  m.impl(linear_cross_entropy_backward.kName, TORCH_FN(unpacked<&linear_backward>));
  m.impl(linear_row_parts.kName, TORCH_FN(unpacked<&linear_parts>));
  m.impl(linear_row_parts_backward.kName, TORCH_FN(unpacked<&linear_parts_backward>));
}

}  // namespace

TORCH_LIBRARY_IMPL(softkern, CompositeExplicitAutograd, m) {
  m.impl(linear_cross_entropy.kName, TORCH_FN(unpacked<&linear_below_autograd>));
}

TORCH_LIBRARY_IMPL(softkern, CPU, m) { register_linear(m); }
TORCH_LIBRARY_IMPL(softkern, CUDA, m) { register_linear(m); }
TORCH_LIBRARY_IMPL(softkern, XPU, m) { register_linear(m); }

}  // namespace softkern
