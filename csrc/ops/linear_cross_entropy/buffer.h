// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "call.h"

namespace softkern {

/// Memory for the logits of some rows and for their gradients, used again and again.
///
/// Gradients that products take in the dtype of the operands replace the logits that they come from, in half
/// of the memory. So the gradients of several pieces of rows that wait for one product take the front of the
/// memory, and the logits of the next piece are behind them.
class LogitsBuffer {
 public:
  /// For pieces of so many rows and columns; waiting: the rows whose 16-bit gradients may wait, 0 for none.
  LogitsBuffer(const LinearCall& call, int64_t rows, int64_t columns, int64_t waiting);

  /// The logits of the next piece.
  Tensor logits(int64_t rows, int64_t columns) const;
  /// Narrows the gradients of the piece, which have replaced its logits. They wait.
  void narrow(const Tensor& gradients);
  /// All that wait, which the next piece may overwrite.
  Tensor taken(int64_t columns);
  int64_t waiting() const { return waiting_; }

 private:
  Tensor matrix(const Tensor& memory, int64_t row, int64_t rows, int64_t columns) const;

  int64_t pitch_, waiting_ = 0;
  Tensor wide_;    // the memory in the compute type
  Tensor narrow_;  // the same memory in the dtype of the operands; undefined: nothing is narrowed
  Tensor spare_;   // for the first rows of a piece
};

}  // namespace softkern
