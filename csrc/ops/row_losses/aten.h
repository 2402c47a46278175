// SPDX-License-Identifier: Apache-2.0
// row_losses in ATen's ops: for transforms, tracers, forward-mode derivatives, gradients of other arguments
// than the logits, and devices without kernels. Also its gradient as a function that can be differentiated.
// The formulas are those of common/row_losses.h.
#pragma once

#include "../ops.h"
#include "arguments.h"

namespace softkern {

RowResults row_losses_in_aten(const RowTensors& of, const SymRowOptions& options);

/// As row_losses_in_aten, unless a backend was required by name.
RowResults row_losses_by_aten(const RowTensors& of, const SymRowOptions& options);

/// The upstream gradients of the results; undefined: 0.
struct RowUpstream {
  Tensor loss, log_prob, lse, entropy;
};

Tensor row_losses_gradient_in_aten(const RowUpstream& upstream, const RowTensors& of,
                                   const SymRowOptions& options);

}  // namespace softkern
