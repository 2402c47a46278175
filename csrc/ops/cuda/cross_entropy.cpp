// SPDX-License-Identifier: Apache-2.0
// cross_entropy of CUDA tensors.
#include "../cross_entropy/call.h"
#include "launch.h"
#include "row_losses.h"

namespace softkern::cuda {
namespace {

double* doubles_in(const Tensor& numbers) {
  return numbers.defined() ? static_cast<double*>(numbers.data_ptr()) : nullptr;
}

/// Memory for sums of the rows; undefined if none is needed.
Tensor scratch_for(const Tensor& x, int64_t rows) {
  const int64_t numbers = sum_scratch(rows);
  return numbers > 0 ? new_numbers(x, {numbers}, at::kDouble) : Tensor();
}

TargetWeights weights_of(const CrossEntropyCall& call) {
  return {call.target.const_data_ptr(),
          index_type_of(call.target),
          call.classes(),
          call.options.ignore_index,
          call.weight.defined() ? call.weight.const_data_ptr() : nullptr,
          element_type(call.logits)};
}

/// Adds up `losses`, after which args names the divisor. scratch: sum_scratch(rows) numbers.
void launch_sum(ReduceArgs args, const void* losses, int64_t rows, bool in_double, const Number& storage,
                const Tensor& loss, const Tensor& grad_scale, double* scratch, const DeviceStream& stream) {
  args.losses = losses;
  args.in_double = in_double;
  args.rows = rows;
  args.storage = storage.value;
  args.stored = storage.data<float>();
  args.loss = loss.data_ptr();
  args.loss_type = element_type(loss);
  args.grad_scale = grad_scale.defined() ? grad_scale.data_ptr() : nullptr;
  args.scratch = scratch;
  check_launch(reduce_losses(args, stream));
}

/// Multiplies gradients by `factor` and, unless it is null, by the number of the compute type at `at`.
void launch_rows(const CrossEntropyCall& call, double factor, const void* at, void* losses, bool narrow,
                 const Tensor& grad, const DeviceStream& stream) {
  if (call.layout.rows == 0) return;
  Tensor keep_logits, keep_target;
  CrossEntropyArgs args{};
  args.shape = call.layout.shape;
  args.rows = call.layout.rows;
  args.logits = readable_rows(call.logits, call.dim, keep_logits);
  if (call.indices) {
    args.target = call.target.const_data_ptr();
    args.target_type = index_type_of(call.target);
  } else {
    args.probabilities = readable_rows(call.target, call.dim, keep_target);
  }
  args.weight = call.weight.defined() ? call.weight.const_data_ptr() : nullptr;
  args.options = call.options;
  args.loss = losses;
  args.narrow_loss = narrow;
  args.grad_factor = factor;
  args.factor = at;
  if (grad.defined()) args.grad = *as_rows(grad, call.dim, grad.data_ptr());
  const Outcome outcome = with_element(element_type(call.logits), [&](auto element) {
    return cuda::cross_entropy<decltype(element)>(args, stream);
  });
  if (!kStopsDevice && outcome.error != nullptr && call.indices) raise_out_of_bounds(call);
  check_launch(outcome);
}

class CudaKernels final : public CrossEntropyKernels {
 public:
  /// Does not check the range of targets: the kernel of the rows stops the device if one is out of range.
  Divisor check_targets(const CrossEntropyCall& call) const override {
    if (call.options.reduction != kMean) return {{1}, {1}};
    const OnDevice device(call.logits);
    const Tensor sum = new_numbers(call.logits, {}, at::kDouble);
    const Tensor reciprocal = new_numbers(call.logits, {}, call.compute);
    const Tensor scratch = scratch_for(call.logits, call.layout.rows);
    check_launch(find_mass({weights_of(call), call.layout.rows, doubles_in(sum), reciprocal.data_ptr(),
                            call.compute == at::kDouble, doubles_in(scratch)},
                           device.target()));
    return {{0, sum}, {0, reciprocal}};
  }

  void rows(const CrossEntropyCall& call, const Number& factor, const Tensor& losses,
            const Tensor& grad) const override {
    const OnDevice device(call.logits);
    launch_rows(call, factor.on_device.defined() ? 1 : factor.value, factor.data<void>(), losses.data_ptr(),
                losses.scalar_type() != call.compute, grad, device.target());
  }

  /// With class indices, the weight of the targets is the divisor of a mean. It is found before the rows if
  /// their gradients need it, and otherwise together with the sum of the losses.
  void reduced_loss(const CrossEntropyCall& call, const Number& storage, const Tensor& loss,
                    const Tensor& grad, const Tensor& grad_scale) const override {
    const OnDevice device(call.logits);
    const int64_t rows = call.layout.rows;
    const bool in_double = call.compute == at::kDouble, mean = call.options.reduction == kMean;
    const bool weighs = mean && call.indices, before = weighs && grad.defined() && !is_scaled(storage);
    // The mass and its reciprocal, the losses, and scratch memory of the sums: one allocation.
    const int64_t losses = in_double ? rows : (rows + 1) / 2;
    const Tensor numbers = new_numbers(call.logits, {2 + losses + sum_scratch(rows)}, at::kDouble);
    double *const mass = doubles_in(numbers), *const reciprocal = mass + 1, *const loss_of_rows = mass + 2;
    double* const scratch = loss_of_rows + losses;
    ReduceArgs args{};
    args.divisor = mean && !weighs ? static_cast<double>(rows) : 1;
    Number factor = is_scaled(storage) ? storage : Number{1 / args.divisor};
    if (before) {
      check_launch(
          find_mass({weights_of(call), rows, mass, reciprocal, in_double, scratch}, device.target()));
      args.mass = mass;
    } else if (weighs) {
      args.by_weight = true;
      args.weights = weights_of(call);
    }
    launch_rows(call, factor.on_device.defined() ? 1 : factor.value,
                before ? reciprocal : factor.data<void>(), loss_of_rows, false, grad,
                before ? device.target().after_kernel() : device.target());
    launch_sum(args, loss_of_rows, rows, in_double, storage, loss, grad_scale, scratch,
               device.target().after_kernel());
  }

  void row_losses(const RowCall& call, const RowOutputs& outputs, const RowGradients& upstream,
                  const Tensor& grad) const override {
    cuda::row_losses(call, outputs, upstream, grad);
  }
  void merge_rows(const RowCall& call, const RowParts& parts, const RowOutputs& outputs) const override {
    cuda::merge_rows(call, parts, outputs);
  }

  void reduce(const Tensor& losses, const Number& divisor, const Number& storage, const Tensor& loss,
              const Tensor& grad_scale) const override {
    const OnDevice device(losses);
    ReduceArgs args{};
    args.divisor = divisor.value;
    args.mass = divisor.data<double>();
    const Tensor scratch = scratch_for(losses, losses.numel());
    launch_sum(args, losses.const_data_ptr(), losses.numel(), losses.scalar_type() == at::kDouble, storage,
               loss, grad_scale, doubles_in(scratch), device.target());
  }

  void scale(const Tensor& grad_output, const Tensor& grad, const Tensor& grad_scale, const Tensor& target,
             int64_t ignore_index, const Tensor& out) const override {
    const OnDevice device(grad);
    const int64_t dim = class_dim(grad);
    const Layout layout = layout_of(grad, dim);
    const bool single = is_one_factor(grad_output);
    const Tensor upstream = single ? grad_output : grad_output.contiguous();
    const Tensor index = target.defined() ? target.contiguous() : Tensor();
    ScaleArgs args{};
    args.shape = layout.shape;
    args.rows = layout.rows;
    args.input = *as_rows(grad, dim, grad.data_ptr());
    args.output = *as_rows(out, dim, out.data_ptr());
    args.upstream = upstream.const_data_ptr();
    args.upstream_type = element_type(upstream);
    args.by_row = !single;
    args.scale = grad_scale.const_data_ptr();
    args.target = index.defined() ? index.const_data_ptr() : nullptr;
    args.target_type = index.defined() ? index_type_of(index) : kInt64;
    args.ignore_index = ignore_index;
    check_launch(with_element(element_type(grad), [&](auto element) {
      return cuda::scale<decltype(element)>(args, device.target().after_kernel());
    }));
  }
};

const CudaKernels kKernels;
[[maybe_unused]] const bool kCrossEntropyNamed = set_cross_entropy_kernels(Backend::kCuda, kKernels);

}  // namespace
}  // namespace softkern::cuda
