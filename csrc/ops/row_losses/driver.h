// SPDX-License-Identifier: Apache-2.0
// The parts of row_losses' driver (forward.cpp) that linear_cross_entropy's driver needs too.
#pragma once

#include "call.h"

namespace softkern {

/// The call of these arguments, which takes_row_losses() must accept. `of` must outlive it. The values of the
/// logits are not read.
RowCall checked_rows(const CrossEntropyKernels& kernels, const RowTensors& of, const SymRowOptions& options);

/// Checks the targets, as far as the host can, and returns the divisor of a mean, else 1.
Divisor divisor_of(const CrossEntropyKernels& kernels, const RowCall& call, const Tensor& num_items);

/// The upstream gradient of all rows' losses: that of the reduced loss, of one element, over the divisor.
Number factor_of(const Tensor& grad_loss, const Divisor& divisor, at::ScalarType compute);

/// Computes the numbers of some classes of rows (RowOutputs::parts), adds the z of several indices to
/// `hot_z`, where it is defined, and writes the first class of the largest z to `argmax`, where that is
/// defined: a class of whole rows, -1 if there is none, and -2 - c for a class c whose z is NaN, since that
/// counts as larger than all numbers.
void compute_part(const CrossEntropyKernels& kernels, const RowCall& call, const Tensor& numbers,
                  Tensor hot_z, Tensor argmax);

/// The upstream gradients of some classes of rows. by_row converts numbers of rows, and `divisor` gives that
/// of a mean.
template <class ByRow, class OfMean>
RowGradients upstream_of(const OptionalTensor& grad_loss, const OptionalTensor& grad_log_prob,
                         const OptionalTensor& grad_lse, const OptionalTensor& grad_entropy,
                         const RowOptions& options, at::ScalarType compute, ByRow by_row, OfMean divisor) {
  const auto numbers = [&](const OptionalTensor& g) {
    return g.has_value() && g->defined() ? by_row(g->to(compute)).contiguous() : Tensor();
  };
  RowGradients upstream;
  upstream.log_prob = numbers(grad_log_prob);
  upstream.lse = numbers(grad_lse);
  upstream.entropy = numbers(grad_entropy);
  if (grad_loss.has_value() && grad_loss->defined()) {
    if (options.reduction == kNone) {
      upstream.loss = numbers(grad_loss);
      upstream.factor = {1};
    } else {
      upstream.factor = factor_of(*grad_loss, divisor(), compute);
    }
  }
  return upstream;
}

}  // namespace softkern
