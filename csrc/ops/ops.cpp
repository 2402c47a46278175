// SPDX-License-Identifier: Apache-2.0
// The libraries of ops, and the ops at the keys where no gradient is recorded.
#include "ops.h"

#include <ATen/ops/log_softmax.h>
#include <ATen/ops/softmax.h>
#include <torch/library.h>

#include "checks.h"
#include "fallback.h"

namespace softkern {
namespace {

// Inference tensors come to the softmaxes past autograd's checks.
template <const auto& kOp, Tensor (*kTorchs)(const Tensor&, int64_t)>
Tensor softmax_below_autograd(const Tensor& self, int64_t dim) {
  return takes_tensor(self) ? kOp.route(self, dim) : by_aten(kTorchs(self, dim));
}
Tensor torch_softmax(const Tensor& self, int64_t dim) { return at::softmax(self, dim); }
Tensor torch_log_softmax(const Tensor& self, int64_t dim) { return at::log_softmax(self, dim); }

// Inference mode and no_grad come here, and so do devices without kernels.
Tensor cross_entropy_below_autograd(const Tensor& self, const Tensor& target, const OptionalTensor& weight,
                                    const SymCrossEntropyOptions& options) {
  if (!takes_cross_entropy(self, target, weight, options)) {
    return cross_entropy_by_aten(self, target, weight, options);
  }
  return std::get<0>(cross_entropy_forward(self, target, weight, options, /*need_grad=*/false));
}

// No gradient is wanted here: the logits stay what they are.
Tensor cross_entropy_below_autograd_(Tensor self, const Tensor& target, const OptionalTensor& weight,
                                     const SymCrossEntropyOptions& options) {
  return cross_entropy(self, target, weight, options);
}

void register_softmaxes(torch::Library& m) {
  m.impl(softmax.kName, &softmax_below_autograd<softmax, &torch_softmax>);
  m.impl(log_softmax.kName, &softmax_below_autograd<log_softmax, &torch_log_softmax>);
}

void register_ops(torch::Library& m) {
  register_softmaxes(m);
  m.impl(softmax_backward.kName, &softmax_backward.route);
  m.impl(log_softmax_backward.kName, &log_softmax_backward.route);
}

void register_losses(torch::Library& m) {
  m.impl(cross_entropy.kName, unpacked<&cross_entropy_below_autograd>);
  m.impl(cross_entropy_.kName, unpacked<&cross_entropy_below_autograd_>);
}

}  // namespace

TORCH_LIBRARY(softkern, m) {
  for_each_op([&](const auto& op) { m.def(op.kSchema); });
}

TORCH_LIBRARY_IMPL(softkern, CPU, m) { register_ops(m); }
TORCH_LIBRARY_IMPL(softkern, CUDA, m) { register_ops(m); }
TORCH_LIBRARY_IMPL(softkern, XPU, m) { register_ops(m); }

TORCH_LIBRARY_IMPL(softkern, CompositeExplicitAutograd, m) { register_losses(m); }

// Nested tensors on any device, with and without autograd: CompositeExplicitAutograd leaves them out.
TORCH_LIBRARY_IMPL(softkern, CompositeImplicitAutogradNestedTensor, m) {
  register_softmaxes(m);
  register_losses(m);
}

}  // namespace softkern
