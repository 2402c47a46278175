// SPDX-License-Identifier: Apache-2.0
// The products and the steps of a call of linear_cross_entropy, piece by piece.
#pragma once

#include "call.h"

namespace softkern {

/// Results of row_losses for all kept rows, and gradients; undefined: not computed.
struct Computed {
  RowOutputs outputs;
  Tensor grad_input, grad_weight, grad_bias;
};

/// Plans fast (with needs), and the forward of all others.
Computed compute_forward(const LinearCall& call, const LinearPlan& plan, int64_t needs, bool wants_numbers);

/// The gradients from the numbers of whole rows. That of the input has the compute type.
Computed compute_backward(const LinearCall& call, const LinearPlan& plan, const RowGradients& upstream,
                          const Tensor& numbers, int64_t needs);

/// The numbers of the kept rows' classes, tile by tile, as row_parts gives them.
struct ComputedParts {
  Tensor numbers, hot_z, argmax;
};
ComputedParts compute_parts(const LinearCall& call, const LinearPlan& plan, int64_t tile_classes);

}  // namespace softkern
