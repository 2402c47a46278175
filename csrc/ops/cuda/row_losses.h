// SPDX-License-Identifier: Apache-2.0
// The steps row_losses and merge_rows of the CUDA kernels (ops/cross_entropy/call.h).
#pragma once

#include "../row_losses/call.h"

namespace softkern::cuda {

void row_losses(const RowCall& call, const RowOutputs& outputs, const RowGradients& upstream,
                const Tensor& grad);
void merge_rows(const RowCall& call, const RowParts& parts, const RowOutputs& outputs);

}  // namespace softkern::cuda
