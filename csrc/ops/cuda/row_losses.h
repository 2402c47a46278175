// SPDX-License-Identifier: Apache-2.0
// The step row_losses of the CUDA kernels (ops/cross_entropy/call.h).
#pragma once

#include "../row_losses/call.h"

namespace softkern::cuda {

void row_losses(const RowCall& call, const RowOutputs& outputs, const RowGradients& upstream,
                const Tensor& grad);

}  // namespace softkern::cuda
