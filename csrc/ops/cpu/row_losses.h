// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "../row_losses/call.h"

namespace softkern::cpu {

/// CrossEntropyKernels::row_losses of CPU tensors.
void row_losses(const RowCall& call, const RowOutputs& outputs, const RowGradients& upstream,
                const Tensor& grad);

}  // namespace softkern::cpu
