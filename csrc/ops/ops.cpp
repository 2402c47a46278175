// SPDX-License-Identifier: Apache-2.0
// The library of ops, and cross_entropy at the dispatch keys where no gradient is recorded.
#include "ops.h"

#include <torch/library.h>

#include "checks.h"
#include "fallback.h"

namespace softkern {
namespace {

// Called in inference mode, under no_grad, and for devices without kernels.
Tensor cross_entropy_below_autograd(const Tensor& self, const Tensor& target, const OptionalTensor& weight,
                                    const SymCrossEntropyOptions& options) {
  if (!takes_cross_entropy(self, target, weight, options)) {
    return cross_entropy_by_aten(self, target, weight, options);
  }
  return std::get<0>(cross_entropy_forward(self, target, weight, options, /*need_grad=*/false));
}

// No gradient is recorded here, so the logits are not overwritten.
Tensor cross_entropy_below_autograd_(Tensor self, const Tensor& target, const OptionalTensor& weight,
                                     const SymCrossEntropyOptions& options) {
  return cross_entropy(self, target, weight, options);
}

void register_losses(torch::Library& m) {
  m.impl(cross_entropy.kName, TORCH_FN(unpacked<&cross_entropy_below_autograd>));
  m.impl(cross_entropy_.kName, TORCH_FN(unpacked<&cross_entropy_below_autograd_>));
}

}  // namespace

TORCH_LIBRARY(softkern, m) {
  for_each_op([&](const auto& op) { m.def(op.kSchema); });
}

TORCH_LIBRARY_IMPL(softkern, CompositeExplicitAutograd, m) { register_losses(m); }

// CompositeExplicitAutograd does not cover nested tensors (as in autograd/softmax.cpp).
TORCH_LIBRARY_IMPL(softkern, CompositeImplicitAutogradNestedTensor, m) { register_losses(m); }

}  // namespace softkern
