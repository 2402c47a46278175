// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "../row_losses/call.h"

namespace softkern::cpu {

/// CrossEntropyKernels::row_losses of CPU tensors.
void row_losses(const RowCall& call, const RowOutputs& outputs, const RowGradients& upstream,
                const Tensor& grad);

/// CrossEntropyKernels::weight_of_rows of CPU tensors, with the same bits as that of other backends.
Divisor weight_of_rows(const RowCall& call);

}  // namespace softkern::cpu
