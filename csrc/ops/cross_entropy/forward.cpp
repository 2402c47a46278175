// SPDX-License-Identifier: Apache-2.0
// Losses and, if requested, gradients: cross_entropy_forward and cross_entropy_forward_.
#include <ATen/MemoryOverlap.h>
#include <ATen/ops/abs.h>
#include <ATen/ops/clamp_min.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/frexp.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/max.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/reciprocal.h>
#include <ATen/ops/where.h>
#include <torch/library.h>

#include <algorithm>

#include "../ops.h"
#include "call.h"

namespace softkern {

Number CrossEntropyKernels::half_storage(const CrossEntropyCall& call) const {
  Tensor largest = at::ones({}, call.logits.options().dtype(at::kFloat));
  if (!call.indices && call.target.numel() > 0) {
    const Tensor masses =
        at::linalg_vector_norm(call.target, 1, at::IntArrayRef(call.dim), false, at::kFloat);
    largest = at::maximum(largest, at::max(masses));
  }
  if (call.weight.defined()) {
    largest = largest.mul(at::clamp_min(at::max(at::abs(call.weight)).to(at::kFloat), 1));
  }
  const Tensor exponent = std::get<1>(at::frexp(largest));  // largest <= 2^exponent
  // 2^(15 - exponent) is made from its bits, because the result of exp2 need not be a power of two.
  const Tensor storage =
      exponent.to(at::kInt).neg().add(15 + 127).bitwise_left_shift(23).view(at::ScalarType::Float);
  return {0, at::where(at::isfinite(largest), storage, at::ones({}, storage.options()))};
}

void CrossEntropyKernels::set(const Tensor& scalar, double value) const { scalar.fill_(value); }

Tensor CrossEntropyKernels::new_output(const Tensor& like) const { return softkern::new_output(like); }

void CrossEntropyKernels::reduced_loss(const CrossEntropyCall& call, const Number& storage,
                                       const Tensor& loss, const Tensor& grad,
                                       const Tensor& grad_scale) const {
  Divisor divisor{{1}, {1}};
  if (call.indices) {
    divisor = check_targets(call);
  } else if (call.options.reduction == kMean) {
    divisor = divisor_of_rows(call);
  }
  const Tensor losses = new_numbers(call.logits, {call.layout.rows}, call.compute);
  rows(call, is_scaled(storage) ? storage : divisor.reciprocal, losses, grad);
  reduce(losses, divisor.divisor, storage, loss, grad_scale);
}

void raise_out_of_bounds(const CrossEntropyCall& call) {
  const Tensor targets = call.target.to(at::kCPU, at::kLong).contiguous();
  const int64_t* const y = targets.const_data_ptr<int64_t>();
  const int64_t* const wrong = std::find_if(y, y + targets.numel(), [&](int64_t target) {
    return target != call.options.ignore_index && (target < 0 || target >= call.classes());
  });
  TORCH_INTERNAL_ASSERT(wrong != y + targets.numel());
  TORCH_CHECK_INDEX(false, "Target ", *wrong, " is out of bounds.");
}

namespace {

enum class Gradient { kNone, kFresh, kOverLogits };

CrossEntropyCall checked(const CrossEntropyKernels& kernels, const Tensor& self, const Tensor& target,
                         const OptionalTensor& weight, const SymCrossEntropyOptions& options) {
  TORCH_CHECK(takes_cross_entropy(self, target, weight, options),
              "softkern::cross_entropy_forward: arguments that the kernels don't take; call "
              "softkern.cross_entropy, which checks them and falls back");
  const bool indices = !same_shape(self, target);
  const int64_t dim = class_dim(self);
  // Copied here if the kernels can't walk them, since several steps read them.
  const auto probabilities = [&] { return is_walkable(target, dim) ? target : target.contiguous(); };
  return {self,
          indices ? target.to(kernels.index_type(target.scalar_type())).contiguous() : probabilities(),
          weight.has_value() && weight->defined() ? weight->contiguous() : Tensor(),
          known(options),
          indices,
          dim,
          layout_of(self, dim),
          compute_type(self)};
}

/// grad_scale without a reduction: 1 / storage, or 1 if gradients are stored unscaled.
Tensor unreduced_scale(const CrossEntropyKernels& kernels, const CrossEntropyCall& call,
                       const Number& storage) {
  if (storage.on_device.defined()) return at::reciprocal(storage.on_device);
  Tensor result = new_numbers(call.logits, {}, call.compute);
  kernels.set(result, storage.value != 0 ? 1 / storage.value : 1);
  return result;
}

/// Returns (loss, grad, grad_scale). The latter two are undefined if no gradient is wanted.
std::tuple<Tensor, Tensor, Tensor> loss_and_gradient(const Tensor& self, const Tensor& target,
                                                     const OptionalTensor& weight,
                                                     const SymCrossEntropyOptions& options,
                                                     Gradient gradient) {
  const CrossEntropyKernels& kernels = cross_entropy_kernels(self.device());
  const CrossEntropyCall call = checked(kernels, self, target, weight, options);
  const bool need_grad = gradient != Gradient::kNone;

  Number storage;  // 0: gradients are stored unscaled
  if (need_grad && self.scalar_type() == at::kHalf) {
    storage = call.indices && !call.weight.defined() ? Number{0x1p15} : kernels.half_storage(call);
  }
  Tensor loss, grad, grad_scale;
  if (gradient == Gradient::kFresh) grad = kernels.new_output(self);
  if (gradient == Gradient::kOverLogits) grad = self;
  if (call.options.reduction == kNone) {
    if (call.indices) kernels.check_targets(call);
    loss = new_numbers(self, target_sizes(self), kernels.stores_narrow() ? self.scalar_type() : call.compute);
    kernels.rows(call, is_scaled(storage) ? storage : Number{1}, loss, grad);
    loss = loss.to(self.scalar_type());
    if (need_grad) grad_scale = unreduced_scale(kernels, call, storage);
  } else {
    loss = new_numbers(self, {}, self.scalar_type());
    if (need_grad) grad_scale = new_numbers(self, {}, call.compute);
    kernels.reduced_loss(call, storage, loss, grad, grad_scale);
  }
  return {loss, grad, grad_scale};
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& self, const Tensor& target,
                                           const OptionalTensor& weight,
                                           const SymCrossEntropyOptions& options, bool need_grad) {
  auto [loss, grad, grad_scale] =
      loss_and_gradient(self, target, weight, options, need_grad ? Gradient::kFresh : Gradient::kNone);
  if (!need_grad) {
    grad = at::empty({0}, self.options());
    grad_scale = new_numbers(self, {0}, compute_type(self));
  }
  return {loss, grad, grad_scale};
}

std::tuple<Tensor, Tensor> forward_(Tensor self, const Tensor& target, const OptionalTensor& weight,
                                    const SymCrossEntropyOptions& options) {
  TORCH_CHECK(is_walkable(self, class_dim(self)) && at::has_internal_overlap(self) != at::MemOverlap::Yes,
              "softkern::cross_entropy_forward_: expected logits whose elements have memory of their own, in "
              "steps that the kernels can walk; got strides ",
              self.strides());
  auto [loss, grad, grad_scale] = loss_and_gradient(self, target, weight, options, Gradient::kOverLogits);
  return {loss, grad_scale};
}

void register_forward(torch::Library& m) {
  m.impl(cross_entropy_forward.kName, TORCH_FN(unpacked<&forward>));
  m.impl(cross_entropy_forward_.kName, TORCH_FN(unpacked<&forward_>));
}

}  // namespace

Tensor cross_entropy_loss(const Tensor& self, const Tensor& target, const OptionalTensor& weight,
                          const SymCrossEntropyOptions& options) {
  return std::get<0>(loss_and_gradient(self, target, weight, options, Gradient::kNone));
}

TORCH_LIBRARY_IMPL(softkern, CPU, m) { register_forward(m); }
TORCH_LIBRARY_IMPL(softkern, CUDA, m) { register_forward(m); }
TORCH_LIBRARY_IMPL(softkern, XPU, m) { register_forward(m); }

}  // namespace softkern
