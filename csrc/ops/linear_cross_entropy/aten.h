// SPDX-License-Identifier: Apache-2.0
// linear_cross_entropy with all logits: for transforms, forward-mode derivatives, gradients of other
// arguments, and the plan "reference". Also its gradients in ATen's ops, which can be differentiated.
#pragma once

#include "../row_losses/aten.h"
#include "call.h"

namespace softkern {

/// The plan "reference": ATen's linear layer, then row_losses through the dispatcher.
RowResults linear_cross_entropy_of_logits(const LinearTensors& of, const SymLinearOptions& options);

RowResults linear_cross_entropy_in_aten(const LinearTensors& of, const SymLinearOptions& options);

/// Gradients that `needs` lacks are undefined.
LinearGradients linear_cross_entropy_gradients_in_aten(const RowUpstream& upstream, const LinearTensors& of,
                                                       const SymLinearOptions& options, int64_t needs);

}  // namespace softkern
