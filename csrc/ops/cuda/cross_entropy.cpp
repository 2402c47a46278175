// SPDX-License-Identifier: Apache-2.0
// cross_entropy of CUDA tensors.
#include <ATen/ops/abs.h>
#include <ATen/ops/clamp_min.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/frexp.h>
#include <ATen/ops/full.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/max.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/reciprocal.h>
#include <ATen/ops/where.h>

#include <cmath>
#include <functional>
#include <limits>

#include "../cross_entropy.h"
#include "cuda.h"
#include "launch.h"

namespace softkern::cuda {
namespace {

IndexType index_type(const Tensor& target) {
  switch (target.scalar_type()) {
    case at::kInt:
      return kInt32;
    case at::kByte:
      return kUInt8;
    default:
      return kInt64;
  }
}

/// A number that the host knows, or one on the device.
struct Number {
  double value = 0;
  Tensor on_device;
  template <class T>
  const T* data() const {
    return on_device.defined() ? static_cast<const T*>(on_device.const_data_ptr()) : nullptr;
  }
};

/// Power of two that puts fp16 gradients where the format has most digits: |A p - a| is at most the largest
/// mass of a row, and 2^15 is the format's largest power.
Number half_storage(const Tensor& weight, const Tensor& target, bool indices, int64_t dim) {
  if (!weight.defined() && indices) return {0x1p15, Tensor()};
  Tensor largest = at::ones({}, target.options().dtype(at::kFloat));
  if (!indices && target.numel() > 0) {
    const Tensor row_mass = at::linalg_vector_norm(target, 1, at::IntArrayRef(dim), false, at::kFloat);
    largest = at::maximum(largest, at::max(row_mass));
  }
  if (weight.defined()) {
    largest = largest.mul(at::clamp_min(at::max(at::abs(weight)).to(at::kFloat), 1));
  }
  const Tensor exponent = std::get<1>(at::frexp(largest));  // largest <= 2^exponent
  // 2^(15 - exponent) from its bits: what exp2 gives need not be a power of two.
  const Tensor storage =
      exponent.to(at::kInt).neg().add(15 + 127).bitwise_left_shift(23).view(at::ScalarType::Float);
  return {0, at::where(at::isfinite(largest), storage, at::ones({}, storage.options()))};
}

/// The weight of the targets that count, a double, and its reciprocal in the compute type.
std::tuple<Tensor, Tensor> find_mass(const Tensor& self, const Tensor& target, const Tensor& weight,
                                     int64_t ignore_index, const DeviceStream& where) {
  const at::ScalarType compute = compute_type(self);
  const Tensor mass = new_numbers(self, {}, at::kDouble), factor = new_numbers(self, {}, compute);
  MassArgs args{};
  args.target = target.const_data_ptr();
  args.target_type = index_type(target);
  args.rows = target.numel();
  args.classes = self.size(class_dim(self));
  args.ignore_index = ignore_index;
  args.weight = weight.defined() ? weight.const_data_ptr() : nullptr;
  args.weight_type = element_type(self);
  args.mass = static_cast<double*>(mass.data_ptr());
  args.factor = factor.data_ptr();
  args.factor_in_double = compute == at::kDouble;
  const Tensor scratch = new_numbers(self, {mass_scratch(args.rows)}, at::kDouble);
  args.scratch = static_cast<double*>(scratch.data_ptr());
  check_launch(cuda::find_mass(args, where));
  return {mass, factor};
}

/// The reduced loss and grad_scale.
std::tuple<Tensor, Tensor> reduced(const Tensor& self, const Tensor& losses, const Number& mass,
                                   const Number& storage, bool need_grad, const DeviceStream& where) {
  const at::ScalarType compute = compute_type(self);
  const Tensor loss = new_numbers(self, {}, self.scalar_type());
  const Tensor grad_scale = need_grad ? new_numbers(self, {}, compute) : new_numbers(self, {0}, compute);
  ReduceArgs args{};
  args.losses = losses.const_data_ptr();
  args.in_double = compute == at::kDouble;
  args.rows = losses.numel();
  args.divisor = mass.value;
  args.mass = mass.data<double>();
  args.storage = storage.value;
  args.stored = storage.data<float>();
  args.loss = loss.data_ptr();
  args.loss_type = element_type(self);
  args.grad_scale = need_grad ? grad_scale.data_ptr() : nullptr;
  const Tensor scratch = new_numbers(self, {reduce_scratch(args.rows)}, at::kDouble);
  args.scratch = static_cast<double*>(scratch.data_ptr());
  check_launch(reduce_losses(args, where));
  return {loss, grad_scale};
}

#if defined(SOFTKERN_EMULATED)
/// Tensors of the CPU have no device to be stopped: ATen finds the same target and raises its own exception.
void raise_as_cpu(const Outcome& outcome, const Tensor& self, const Tensor& target,
                  const OptionalTensor& weight, int64_t reduction, int64_t ignore_index,
                  double label_smoothing) {
  if (outcome.error == nullptr || same_shape(self, target)) return;
  at::cross_entropy_loss(self, target.to(at::kLong), weight, reduction, ignore_index, label_smoothing);
}
#endif

/// loss and grad_scale; the gradient goes to `grad`, which may be self, if that is defined.
std::tuple<Tensor, Tensor> loss_and_gradient(const Tensor& self, const Tensor& target,
                                             const OptionalTensor& weight, int64_t reduction,
                                             int64_t ignore_index, double label_smoothing,
                                             const std::function<Tensor()>& make_grad) {
  const bool need_grad = static_cast<bool>(make_grad);
  TORCH_CHECK(takes_cross_entropy(self, target, weight, reduction, ignore_index, label_smoothing),
              "softkern::cross_entropy_forward: arguments that the CUDA kernels don't take; call "
              "softkern.cross_entropy, which checks them and falls back");
  const OnDevice device(self);
  const int64_t dim = class_dim(self);
  const Layout layout = layout_of(self, dim);
  const bool indices = !same_shape(self, target);
  const at::ScalarType compute = compute_type(self);
  const Tensor w = weight.has_value() && weight->defined() ? weight->contiguous() : Tensor();

  Tensor keep_logits, keep_target;
  CrossEntropyArgs args{};
  args.shape = layout.shape;
  args.rows = layout.rows;
  args.logits = readable_rows(self, dim, keep_logits);
  args.options = {ignore_index, label_smoothing};
  args.weight = w.defined() ? w.const_data_ptr() : nullptr;
  Number mass{reduction == kMean ? static_cast<double>(layout.rows) : 1, Tensor()};
  Tensor factor;
  if (indices) {
    keep_target = target.contiguous();
    args.target = keep_target.const_data_ptr();
    args.target_type = index_type(keep_target);
    if (reduction == kMean) {
      std::tie(mass.on_device, factor) = find_mass(self, keep_target, w, ignore_index, device.target());
    }
  } else {
    args.probabilities = readable_rows(target, dim, keep_target);
  }
  Number storage;  // 0: gradients are stored as they are
  if (need_grad && self.scalar_type() == at::kHalf) {
    storage = half_storage(w, target, indices, dim);
    args.grad_factor = storage.on_device.defined() ? 1 : storage.value;
    factor = storage.on_device;
  } else {
    args.grad_factor = factor.defined() ? 1 : 1 / mass.value;
  }
  args.factor = factor.defined() ? factor.const_data_ptr() : nullptr;
  args.narrow_loss = reduction == kNone;
  const Tensor losses = new_numbers(self, {layout.rows}, args.narrow_loss ? self.scalar_type() : compute);
  args.loss = losses.data_ptr();
  Tensor grad;
  if (need_grad) {
    grad = make_grad();
    args.grad = *as_rows(grad, dim, grad.data_ptr());
  }
  if (layout.rows > 0) {
    const Outcome outcome = with_element(element_type(self), [&](auto element) {
      return cuda::cross_entropy<decltype(element)>(args, device.target());
    });
#if defined(SOFTKERN_EMULATED)
    raise_as_cpu(outcome, self, target, weight, reduction, ignore_index, label_smoothing);
#endif
    check_launch(outcome);
  }

  if (reduction != kNone) return reduced(self, losses, mass, storage, need_grad, device.target());
  Tensor grad_scale;
  if (!need_grad) {
    grad_scale = new_numbers(self, {0}, compute);
  } else if (storage.on_device.defined()) {
    grad_scale = at::reciprocal(storage.on_device);
  } else {
    grad_scale = at::full({}, storage.value != 0 ? 1 / storage.value : 1, self.options().dtype(compute));
  }
  return {losses.view(target_sizes(self)), grad_scale};
}

/// out = grad * (grad_output * grad_scale); out may be grad.
void scale_gradient(const Tensor& grad_output, const Tensor& grad, const Tensor& grad_scale,
                    const Tensor& target, int64_t ignore_index, const Tensor& out) {
  if (grad.numel() == 0) return;
  const int64_t dim = class_dim(grad);
  const Layout layout = layout_of(grad, dim);
  TORCH_CHECK(grad_output.device() == grad.device() && takes_dtype(grad_output.scalar_type()) &&
                  (grad_output.numel() == 1 || grad_output.numel() == layout.rows),
              "softkern::cross_entropy_backward: expected a floating-point grad_output on ", grad.device(),
              " with one element or one for each of ", layout.rows, " rows, got ", grad_output.numel(),
              " of ", grad_output.scalar_type(), " on ", grad_output.device());
  const bool expanded = is_one_factor(grad_output);
  const OnDevice device(grad);
  const Tensor upstream = expanded ? grad_output : grad_output.contiguous();
  const Tensor index = same_shape(grad, target) ? Tensor() : target.contiguous();
  ScaleArgs args{};
  args.shape = layout.shape;
  args.rows = layout.rows;
  args.input = *as_rows(grad, dim, grad.data_ptr());
  args.output = *as_rows(out, dim, out.data_ptr());
  args.upstream = upstream.const_data_ptr();
  args.upstream_type = element_type(upstream);
  args.by_row = !expanded;
  args.scale = grad_scale.const_data_ptr();
  args.target = index.defined() ? index.const_data_ptr() : nullptr;
  args.target_type = index.defined() ? index_type(index) : kInt64;
  args.ignore_index = ignore_index;
  check_launch(with_element(element_type(grad), [&](auto element) {
    return cuda::scale<decltype(element)>(args, device.target());
  }));
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> cross_entropy_forward(const Tensor& self, const Tensor& target,
                                                         const OptionalTensor& weight, int64_t reduction,
                                                         c10::SymInt ignore_index, double label_smoothing,
                                                         bool need_grad) {
  Tensor grad;
  const auto fresh = [&] { return grad = new_output(self); };
  auto [loss, grad_scale] =
      loss_and_gradient(self, target, weight, reduction, as_int(ignore_index), label_smoothing,
                        need_grad ? std::function<Tensor()>(fresh) : std::function<Tensor()>());
  if (!need_grad) grad = at::empty({0}, self.options());
  return {loss, grad, grad_scale};
}

std::tuple<Tensor, Tensor> cross_entropy_forward_(Tensor self, const Tensor& target,
                                                  const OptionalTensor& weight, int64_t reduction,
                                                  c10::SymInt ignore_index, double label_smoothing) {
  check_writable_logits(self);
  return loss_and_gradient(self, target, weight, reduction, as_int(ignore_index), label_smoothing,
                           [&] { return self; });
}

Tensor cross_entropy_backward(const Tensor& grad_output, const Tensor& grad, const Tensor& grad_scale,
                              const Tensor& target, c10::SymInt ignore_index) {
  Tensor out = new_output(grad);
  scale_gradient(grad_output, grad.contiguous(), grad_scale, target, as_int(ignore_index), out);
  return out;
}

void cross_entropy_backward_(const Tensor& grad_output, Tensor grad, const Tensor& grad_scale,
                             const Tensor& target, c10::SymInt ignore_index) {
  check_writable_grad(grad);
  scale_gradient(grad_output, grad, grad_scale, target, as_int(ignore_index), grad);
}

}  // namespace softkern::cuda
