// SPDX-License-Identifier: Apache-2.0
// cross_entropy of CUDA tensors.
#include "../cross_entropy/call.h"
#include "launch.h"
#include "row_losses.h"

namespace softkern::cuda {
namespace {

class CudaKernels final : public CrossEntropyKernels {
 public:
  /// Does not check the range of targets: the kernel of the rows stops the device if one is out of range.
  Divisor check_targets(const CrossEntropyCall& call) const override {
    if (call.options.reduction != kMean) return {{1}, {1}};
    const OnDevice device(call.logits);
    const Tensor sum = new_numbers(call.logits, {}, at::kDouble);
    const Tensor reciprocal = new_numbers(call.logits, {}, call.compute);
    MassArgs args{};
    args.target = call.target.const_data_ptr();
    args.target_type = index_type_of(call.target);
    args.rows = call.layout.rows;
    args.classes = call.classes();
    args.ignore_index = call.options.ignore_index;
    args.weight = call.weight.defined() ? call.weight.const_data_ptr() : nullptr;
    args.weight_type = element_type(call.logits);
    args.mass = static_cast<double*>(sum.data_ptr());
    args.factor = reciprocal.data_ptr();
    args.factor_in_double = call.compute == at::kDouble;
    const Tensor scratch = new_numbers(call.logits, {mass_scratch(args.rows)}, at::kDouble);
    args.scratch = static_cast<double*>(scratch.data_ptr());
    check_launch(find_mass(args, device.target()));
    return {{0, sum}, {0, reciprocal}};
  }

  void rows(const CrossEntropyCall& call, const Number& factor, const Tensor& losses,
            const Tensor& grad) const override {
    if (call.layout.rows == 0) return;
    const OnDevice device(call.logits);
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
    args.loss = losses.data_ptr();
    args.narrow_loss = losses.scalar_type() != call.compute;
    args.grad_factor = factor.on_device.defined() ? 1 : factor.value;
    args.factor = factor.data<void>();
    if (grad.defined()) args.grad = *as_rows(grad, call.dim, grad.data_ptr());
    const Outcome outcome = with_element(element_type(call.logits), [&](auto element) {
      return cuda::cross_entropy<decltype(element)>(args, device.target());
    });
    if (!kStopsDevice && outcome.error != nullptr && call.indices) raise_out_of_bounds(call);
    check_launch(outcome);
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
    args.losses = losses.const_data_ptr();
    args.in_double = losses.scalar_type() == at::kDouble;
    args.rows = losses.numel();
    args.divisor = divisor.value;
    args.mass = divisor.data<double>();
    args.storage = storage.value;
    args.stored = storage.data<float>();
    args.loss = loss.data_ptr();
    args.loss_type = element_type(loss);
    args.grad_scale = grad_scale.defined() ? grad_scale.data_ptr() : nullptr;
    const Tensor scratch = new_numbers(losses, {reduce_scratch(args.rows)}, at::kDouble);
    args.scratch = static_cast<double*>(scratch.data_ptr());
    check_launch(reduce_losses(args, device.target()));
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
      return cuda::scale<decltype(element)>(args, device.target());
    }));
  }
};

const CudaKernels kKernels;
[[maybe_unused]] const bool kCrossEntropyNamed = set_cross_entropy_kernels(Backend::kCuda, kKernels);

}  // namespace
}  // namespace softkern::cuda
