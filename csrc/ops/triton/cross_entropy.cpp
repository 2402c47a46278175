// SPDX-License-Identifier: Apache-2.0
// cross_entropy and row_losses with Triton's kernels.
#include "../row_losses/call.h"

#include "triton.h"

namespace softkern::triton {
namespace {

/// The same memory in a tensor that Python has never seen. Once Python has seen a tensor, its Python object
/// stays one of the owners. The backward would then assume another owner and scale into a new tensor.
Tensor unseen(const Tensor& x) {
#ifdef TORCH_TARGET_VERSION
  return x;  // the stable build, whose backward is in Python and has seen them all
#else
  return Tensor(x.unsafeGetTensorImpl()->shallow_copy_and_detach(/*version_counter=*/0,
                                                                 /*allow_tensor_metadata_change=*/true));
#endif
}

class TritonKernels final : public CrossEntropyKernels {
 public:
  /// Compiled kernels stop the device if a target is out of range. On the CPU, kernels are interpreted, and
  /// the host checks the targets.
  Divisor check_targets(const CrossEntropyCall& call) const override {
    if (call.logits.is_cpu()) refuse_wrong_targets(call);
    if (call.options.reduction != kMean) return {{1}, {1}};
    const Tensor sum = new_numbers(call.logits, {}, at::kDouble);
    const Tensor reciprocal = new_numbers(call.logits, {}, call.compute);
    target_weight.redispatch(kernels_of(call.logits.device()), call.target, if_given(call.weight),
                             call.classes(), call.options.ignore_index, sum, reciprocal);
    return {{0, sum}, {0, reciprocal}};
  }

  void rows(const CrossEntropyCall& call, const Number& factor, const Tensor& losses,
            const Tensor& grad) const override {
    cross_entropy_rows.redispatch(kernels_of(call.logits.device()), call.logits, call.target,
                                  if_given(call.weight), call.options,
                                  factor.on_device.defined() ? 1 : factor.value, if_given(factor.on_device),
                                  losses, grad.defined() ? OptionalTensor(unseen(grad)) : std::nullopt);
  }

  void row_losses(const RowCall& call, const RowOutputs& outputs, const RowGradients& upstream,
                  const Tensor& grad) const override {
    const Number& factor = upstream.factor;
    triton::row_losses.redispatch(
        kernels_of(call.logits.device()), call.logits, indices_of(call), if_given(call.target_probs),
        if_given(call.probabilities), if_given(call.weight), if_given(call.row_weight), call.options,
        call.first, if_given(call.whole), factor.on_device.defined() ? 1 : factor.value,
        if_given(factor.on_device), if_given(upstream.loss), if_given(upstream.log_prob),
        if_given(upstream.lse), if_given(upstream.entropy), if_given(outputs.loss),
        if_given(outputs.log_prob), if_given(outputs.lse), if_given(outputs.entropy),
        if_given(outputs.argmax), if_given(outputs.correct), if_given(outputs.parts), if_given(outputs.hot_z),
        grad.defined() ? OptionalTensor(unseen(grad)) : std::nullopt);
  }
  void merge_rows(const RowCall& call, const RowParts& parts, const RowOutputs& outputs) const override {
    triton::merge_rows.redispatch(kernels_of(call.logits.device()), parts.numbers, if_given(parts.hot_z),
                                  indices_of(call), if_given(call.target_probs), if_given(call.weight),
                                  if_given(call.row_weight), call.options, if_given(outputs.loss),
                                  if_given(outputs.log_prob), if_given(outputs.lse),
                                  if_given(outputs.entropy), if_given(outputs.parts));
  }

  void reduce(const Tensor& losses, const Number& divisor, const Number& storage, const Tensor& loss,
              const Tensor& grad_scale) const override {
    reduce_losses.redispatch(kernels_of(losses.device()), losses, divisor.value, if_given(divisor.on_device),
                             storage.value, if_given(storage.on_device), loss, if_given(grad_scale));
  }

  void scale(const Tensor& grad_output, const Tensor& grad, const Tensor& grad_scale, const Tensor& target,
             int64_t ignore_index, const Tensor& out) const override {
    // With a retained graph, a later backward may still scale in place, so Python must not see these tensors.
    scale_gradient.redispatch(kernels_of(grad.device()), grad_output, unseen(grad), grad_scale,
                              if_given(target), ignore_index, unseen(out));
  }

 private:
  /// (rows), or (rows, K) with several of them.
  static OptionalTensor indices_of(const RowCall& call) {
    if (call.kind == TargetKind::kIndex) return call.target.view(call.layout.rows);
    if (call.kind == TargetKind::kIndices) return call.target.view({call.layout.rows, call.per_row});
    return std::nullopt;
  }
  /// Interpreted kernels have no device that an assertion could stop.
  static void refuse_wrong_targets(const CrossEntropyCall& call) {
    const Tensor y = call.target.to(at::kLong);  // ignore_index may not fit into a narrower dtype
    const Tensor wrong =
        y.ne(call.options.ignore_index).logical_and(y.lt(0).logical_or(y.ge(call.classes())));
    if (wrong.any().item<bool>()) raise_out_of_bounds(call);
  }
};

const TritonKernels kKernels;
[[maybe_unused]] const bool kCrossEntropyNamed = set_cross_entropy_kernels(Backend::kTriton, kKernels);

}  // namespace
}  // namespace softkern::triton
