// SPDX-License-Identifier: Apache-2.0
// The memory that row_losses needs for a range of rows.
#pragma once

#include "drive.h"
#include "row_results.h"

namespace softkern::cpu {
namespace {

/// The logits of the indices of rows whose results wait, and those of a row that has begun in addition.
constexpr int kResultSlots = 2 * kResultRows;

/// The memory of a range of rows.
template <class T>
struct RowLossRows {
  using A = Compute<T>;
  const bool differentiates, transforms, sums_below, reads_z;
  const bool lag;  // a row is finished after the next one has begun
  Operand<T> logits, probabilities, grad;
  A* hot_grad = nullptr;  // and their gradients
  double* hot = nullptr;  // for several indices a row: the hot part of each class, 0 between two rows

  RowLossRows(const RowLossArgs& a, const Range& range, Arena& arena)
      : differentiates(a.grad.data != nullptr),
        transforms(transforms_logits(a.options) || kIsNarrow<T>),
        sums_below(a.whole == nullptr && (a.entropy != nullptr || a.of_entropy != nullptr ||
                                          (a.parts != nullptr && (a.options.outputs & kEntropy) != 0))),
        reads_z(a.of_entropy != nullptr || a.options.softcap != 0 || a.argmax != nullptr ||
                a.correct != nullptr),
        lag(differentiates && lags(a.valid, sizeof(T))),
        logits(a.logits, a.shape, range, arena),
        probabilities(a.probabilities, a.shape, range, arena),
        grad(a.grad, a.shape, range, arena, &logits, a.stream),
        pitch_(row_pitch(a.valid)),
        per_row_(a.per_row) {
    const int64_t slots = lag ? 2 : 1;
    hot_z_ = arena.take<A>(kResultSlots * per_row_);
    if (transforms) z_ = arena.take<A>(slots * pitch_);
    // Terms replace z, or wait in the row of the gradient, unless z is read after them, or that row is
    // written only once.
    const bool keeps = differentiates && (reads_z || (!transforms && grad.streamed()));
    if (keeps) e_ = arena.take<A>(slots * pitch_);
    if (differentiates) hot_grad = arena.take<A>(a.per_row);
    if (differentiates && a.per_row > 1) hot = arena.take<double>(a.valid);
  }
  /// Memory for the transformed logits of row r.
  A* z(int64_t r) const { return z_ + slot(r) * pitch_; }
  /// The logits of the row's indices.
  A* hot_z(int64_t r) const { return hot_z_ + r % kResultSlots * per_row_; }
  /// Memory for the terms; null if nothing depends on them.
  A* terms(int64_t r, T* dx) const {
    if (e_ != nullptr) return e_ + slot(r) * pitch_;
    if (!differentiates) return nullptr;
    return transforms ? z(r) : compute_row(dx, z_);
  }

 private:
  int64_t slot(int64_t r) const { return lag ? r & 1 : 0; }
  A *z_ = nullptr, *e_ = nullptr, *hot_z_ = nullptr;
  int64_t pitch_, per_row_;
};

}  // namespace
}  // namespace softkern::cpu
