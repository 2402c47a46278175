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

/// The class that `argmax` has among `logits` (N, C), as a class of whole rows, where those logits begin with
/// `first`: -1 stays, and a class c whose z is NaN becomes -2 - c, as it counts as larger than all numbers.
Tensor largest_classes(const Tensor& logits, const Tensor& argmax, int64_t first, const RowOptions& options);

}  // namespace softkern
