// SPDX-License-Identifier: Apache-2.0
// A call of linear_cross_entropy: its arguments, and its rows that are not ignored.
#pragma once

#include "../ops.h"
#include "../row_losses/driver.h"
#include "plan.h"
#include "products.h"

namespace softkern {

/// Undefined: not given.
struct LinearTensors {
  Tensor input;   // (N, H)
  Tensor matrix;  // (C, H)
  Tensor bias;    // (C)
  /// The arguments of row_losses. Its logits have the shape of those of this call and no memory.
  RowTensors rows;

  LinearTensors(SOFTKERN_LINEAR_TENSORS);
  /// For a matrix of some classes of whole rows, which have `whole` classes, or as many as `weight`. Class
  /// probabilities are of the same classes as the matrix.
  LinearTensors(SOFTKERN_LINEAR_TENSORS, int64_t whole);
  Tensor probabilities;  // of the classes of the matrix; undefined: those of `rows`
  template <class F>
  bool any(F f) const {
    return f(input) || f(matrix) || (bias.defined() && f(bias));
  }
};

/// Whether the kernels take these arguments: as in checks.h, for fake tensors and symbolic sizes, too.
bool takes_linear_cross_entropy(const LinearTensors& of, const SymLinearOptions& options);

/// The options with the plan that is chosen for all rows of the call.
SymLinearOptions with_chosen_plan(const LinearTensors& of, const SymLinearOptions& options, int64_t needs);

/// The rows that are not ignored, and everything that is computed of them.
class LinearCall {
 public:
  /// `of` must outlive the call. Raises for targets that are out of bounds, as far as the host can know.
  /// first: the class of whole rows that the matrix begins with.
  LinearCall(const LinearTensors& of, const SymLinearOptions& options, int64_t first = 0);
  LinearCall(const LinearCall&) = delete;

  /// The sizes of the rows that are kept.
  LinearShape shape() const;
  LinearPlan pieces_of(Plan plan, int64_t needs) const;
  bool prefers_fast(int64_t needs) const;
  /// The call of row_losses for rows [first, first + count) of those that are kept, whose logits are given.
  RowCall rows_of(const Tensor& logits, int64_t first, int64_t count) const;
  /// The same for the classes [first, first + logits.size(1)) of all rows that are kept.
  RowCall classes_of(const Tensor& logits, int64_t first, const Tensor& numbers) const;
  /// The same for some rows and the classes of the matrix from `first` on.
  RowCall part(const Tensor& logits, int64_t row, int64_t count, int64_t first) const;
  /// Numbers of the kept rows as numbers of all rows; `otherwise` in ignored rows. dim: that of the rows.
  Tensor spread(const Tensor& numbers, double otherwise, int64_t dim = 0) const;
  /// The reverse.
  Tensor kept(const Tensor& numbers, int64_t dim = 0) const;
  /// The weight and the bias of classes [first, first + count).
  Tensor matrix(int64_t first, int64_t count) const { return of_.matrix.narrow(0, first, count); }
  Tensor bias(int64_t first, int64_t count) const {
    return of_.bias.defined() ? of_.bias.narrow(0, first, count) : Tensor();
  }

  /// Fresh memory, which the backend may prepare for its first use.
  Tensor fresh(at::IntArrayRef sizes, at::ScalarType type) const;

  const CrossEntropyKernels& kernels;
  const LinearOptions options;
  const at::ScalarType compute;
  const Products products;
  Tensor input;     // of the kept rows
  int64_t rows;     // kept
  int64_t classes;  // of the matrix, without padding
  Divisor divisor;
  /// Class indices per row.
  int64_t per_row() const { return all_.per_row; }
  TargetKind kind() const { return all_.kind; }
  int64_t first() const { return first_; }
  int64_t all_rows() const { return of_.input.size(0); }
  int64_t all_classes() const { return of_.matrix.size(0); }
  int64_t features() const { return of_.input.size(1); }

 private:
  const LinearTensors& of_;
  const int64_t first_;
  RowCall all_;  // of all rows, then of those that are kept
  Tensor kept_;  // their indices; undefined: all
};

}  // namespace softkern
