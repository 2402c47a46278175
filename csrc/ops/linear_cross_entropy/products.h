// SPDX-License-Identifier: Apache-2.0
// The matrix products of a linear layer and its backward, with logits and gradients in the compute type.
#pragma once

#include <ATen/core/Tensor.h>

namespace softkern {

using at::Tensor;

/// Classes whose weights are converted at a time, where products need operands of the compute type.
constexpr int64_t kCastClasses = 4096;

class Products {
 public:
  /// For operands of the dtype and on the device of `input`, with that many features.
  explicit Products(const Tensor& input);

  /// Whether gradients of logits are multiplied in the dtype of the operands. Otherwise they keep the compute
  /// type.
  bool narrows() const { return way_ == Way::kMixed || way_ == Way::kPacked; }

  /// out = x w^T + bias; out has the compute type.
  void logits(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& out) const;
  /// into = dz w, or += with `add`. `into` has the compute type; without `add` it may have the operands'
  /// dtype instead: then the result is rounded once.
  void input_gradient(const Tensor& dz, const Tensor& w, const Tensor& into, bool add) const;
  /// into = dz^T x, or += with `add`, as input_gradient.
  void weight_gradient(const Tensor& dz, const Tensor& x, const Tensor& into, bool add) const;

 private:
  enum class Way {
    kSame,    // operands have the compute type
    kMixed,   // 16-bit operands, ATen's mm with a float32 result
    kPacked,  // bfloat16 on the CPU (brgemm.h)
    kCast     // 16-bit operands are converted, some classes at a time
  };
  Way way_;
  at::ScalarType compute_;
};

}  // namespace softkern
