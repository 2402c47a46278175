// SPDX-License-Identifier: Apache-2.0
#include "buffer.h"

#include <algorithm>

namespace softkern {

LogitsBuffer::LogitsBuffer(const LinearCall& call, int64_t rows, int64_t columns, int64_t waiting)
    : pitch_(row_pitch(columns)),
      wide_(call.fresh({buffer_bytes(call.shape(), rows, columns, waiting) / call.shape().compute_bytes},
                       call.compute)) {
  if (waiting == 0) return;
  narrow_ = wide_.view(call.input.scalar_type());
  spare_ = call.fresh({spare_rows(rows) * pitch_}, call.input.scalar_type());
}

Tensor LogitsBuffer::matrix(const Tensor& memory, int64_t first, int64_t rows, int64_t columns) const {
  return memory.narrow(0, first, rows * pitch_).view({rows, pitch_}).narrow(1, 0, columns);
}

Tensor LogitsBuffer::logits(int64_t rows, int64_t columns) const {
  return matrix(wide_, waiting_ * pitch_ / (narrow_.defined() ? 2 : 1), rows, columns);
}

void LogitsBuffer::narrow(const Tensor& gradients) {
  const int64_t rows = gradients.size(0), columns = gradients.size(1), few = spare_rows(rows);
  const auto to = [&](int64_t first, int64_t count) {
    return matrix(narrow_, (waiting_ + first) * pitch_, count, columns);
  };
  const Tensor spare = matrix(spare_, 0, few, columns);
  spare.copy_(gradients.narrow(0, 0, few));
  to(0, few).copy_(spare);
  // The gradients of rows [k, 2 k) go to where those of rows [k / 2, k) were.
  for (int64_t k = few; k < rows; k *= 2) {
    const int64_t count = std::min(k, rows - k);
    to(k, count).copy_(gradients.narrow(0, k, count));
  }
  // With an odd number of classes, oneDNN's product with AMX reads the rest of a row's last cache line. It
  // multiplies that by zero, which makes NaN of a NaN.
  const int64_t end = (columns + 31) / 32 * 32;
  if (end > columns) matrix(narrow_, waiting_ * pitch_, rows, end).narrow(1, columns, end - columns).zero_();
  waiting_ += rows;
}

Tensor LogitsBuffer::taken(int64_t columns) {
  const int64_t rows = waiting_;
  waiting_ = 0;
  return matrix(narrow_, 0, rows, columns);
}

}  // namespace softkern
