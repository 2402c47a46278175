// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "../row_losses/call.h"

namespace softkern::cpu {

/// CrossEntropyKernels::row_losses of CPU tensors.
void row_losses(const RowCall& call, const RowOutputs& outputs, const RowGradients& upstream,
                const Tensor& grad);

/// CrossEntropyKernels::merge_rows of CPU tensors.
void merge_rows(const RowCall& call, const RowParts& parts, const RowOutputs& outputs);

/// CrossEntropyKernels::weight_of_rows of CPU tensors, with the same bits as that of other backends.
Divisor weight_of_rows(const RowCall& call);

}  // namespace softkern::cpu
