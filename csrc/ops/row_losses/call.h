// SPDX-License-Identifier: Apache-2.0
// A call of row_losses: losses and statistics of rows, with softkern's own options (common/row_losses.h).
#pragma once

#include <algorithm>

#include "../cross_entropy/call.h"
#include "arguments.h"

namespace softkern {

/// Arguments that takes_row_losses() has accepted, as kernels take them. Undefined tensors were not given.
/// Numbers of rows are contiguous in the order of the rows and have the compute type, targets the dtype
/// index_type().
struct RowCall {
  const Tensor& logits;
  TargetKind kind;
  Tensor target;         // kIndex: (rows); kIndices: (rows, K)
  int64_t per_row = 0;   // K; 1 for kIndex, otherwise 0
  Tensor target_probs;   // (rows, K); undefined: the indices have no mass, only log-probabilities are wanted
  Tensor probabilities;  // kProbabilities: of the logits' shape and dtype; kernels can walk them
  Tensor weight;         // contiguous, of the logits' dtype
  Tensor row_weight;     // (rows)
  RowOptions options;    // valid_classes is the number of them
  int64_t dim;           // class dimension
  Layout layout;         // of the logits, with all classes
  at::ScalarType compute;
  // The logits may be those of some classes of the rows: of `first` and those after it. Class indices,
  // weights and valid_classes are of whole rows, probabilities of the same classes as the logits.
  int64_t first = 0;
  /// The numbers of whole rows, (kPartNumbers, rows) in the compute type, with contiguous rows. If defined,
  /// the statistics of the logits are not computed: only their gradient.
  Tensor whole = {};

  int64_t classes() const { return layout.shape.classes; }
  /// Of whole rows.
  int64_t valid() const { return options.valid_classes; }
  /// The classes that are read, as the kernels of cross_entropy take them.
  Shape valid_shape() const {
    return {std::clamp<int64_t>(valid() - first, 0, classes()), layout.shape.inner};
  }
};

/// The reciprocal has the precision of the compute type, as where tensors hold both.
inline Divisor divisor_of_number(double value, at::ScalarType compute) {
  const double reciprocal = 1 / value;
  return {{value},
          {compute == at::kDouble ? reciprocal : static_cast<double>(static_cast<float>(reciprocal))}};
}

/// One number a row in the compute type, log_prob K of them; undefined if not wanted.
struct RowOutputs {
  Tensor loss, log_prob, lse, entropy;
  Tensor argmax;   // int64
  Tensor correct;  // bool
  Tensor parts;    // the numbers of the rows of these logits, in the form of RowCall::whole
  Tensor hot_z;    // with `parts` and several indices: the z of each index, 0 for other classes; (rows, K)
};

/// The numbers of parts of rows: (kPartNumbers, parts, rows), with contiguous rows.
struct RowParts {
  Tensor numbers;
  Tensor hot_z;  // of whole rows, as in RowOutputs; undefined without several indices
};

/// The upstream gradients, in the shapes of the outputs; undefined: 0. That of a row's loss is
/// factor * loss[row], or `factor` if there is no such tensor.
struct RowGradients {
  Number factor;
  Tensor loss, log_prob, lse, entropy;
};

}  // namespace softkern
