// SPDX-License-Identifier: Apache-2.0
// A call of cross_entropy, and the steps that a backend computes for it. Checks, the order of the steps,
// memory for results, the storage of float16 gradients and the reduction are the same for every backend
// (forward.cpp, scale.cpp).
#pragma once

#include "../checks.h"
#include "../op.h"
#include "../rows.h"

namespace softkern {

using at::Tensor;

/// A number that the host knows, or one in device memory.
struct Number {
  double value = 0;
  Tensor on_device = {};
  template <class T>
  const T* data() const {
    return on_device.defined() ? static_cast<const T*>(on_device.const_data_ptr()) : nullptr;
  }
};

/// Whether gradients are stored at that scale: 0 says that they are stored unscaled.
inline bool is_scaled(const Number& storage) { return storage.value != 0 || storage.on_device.defined(); }

/// Arguments that takes_cross_entropy() has accepted.
struct CrossEntropyCall {
  const Tensor& logits;
  Tensor target;  // class indices, contiguous; or class probabilities that kernels can walk
  Tensor weight;  // contiguous; undefined: none
  CrossEntropyOptions options;
  bool indices;
  int64_t dim;  // class dimension
  Layout layout;
  at::ScalarType compute;  // dtype in which losses and sums are computed

  int64_t classes() const { return layout.shape.classes; }
};

/// The divisor of a mean, and its reciprocal in the compute type. Both are 1 without a mean.
struct Divisor {
  Number divisor, reciprocal;
};

/// Of a mean with class probabilities.
inline Divisor divisor_of_rows(const CrossEntropyCall& call) {
  const auto rows = static_cast<double>(call.layout.rows);
  return {{rows}, {1 / rows}};
}

struct RowCall;
struct RowParts;
struct RowOutputs;
struct RowGradients;

/// The part of cross_entropy that a backend computes. Numbers may stay on the device, so that the host does
/// not wait for it.
class CrossEntropyKernels {
 public:
  /// Raises if class indices are out of range, as far as the host can know. For a mean: the total weight of
  /// the targets that are not ignored, or NaN if none of them has a nonzero weight.
  virtual Divisor check_targets(const CrossEntropyCall& call) const = 0;

  /// Computes the losses of the rows, in the dtype of `losses`: the compute type, or the logits' dtype if
  /// stores_narrow(). If `grad` is defined, also computes their gradients times `factor`. `grad` may be the
  /// logits.
  virtual void rows(const CrossEntropyCall& call, const Number& factor, const Tensor& losses,
                    const Tensor& grad) const = 0;
  virtual bool stores_narrow() const { return true; }

  /// The step of row_losses (ops/row_losses/call.h): writes the outputs that are defined and, if `grad` is
  /// defined, the gradient of the logits for the upstream gradients. `grad` may be the logits. Ignored rows
  /// have log_prob, lse, entropy and gradient 0, argmax -1, correct false.
  virtual void row_losses(const RowCall& call, const RowOutputs& outputs, const RowGradients& upstream,
                          const Tensor& grad) const = 0;

  /// Merges the numbers of parts of rows (common/parts.h), and writes those of outputs.{parts, loss,
  /// log_prob, lse, entropy} that are defined. The logits of `call` give its dtype alone.
  virtual void merge_rows(const RowCall& call, const RowParts& parts, const RowOutputs& outputs) const = 0;

  /// loss = (sum of losses) / divisor. If grad_scale is defined, it becomes 1 / (divisor * storage), or 1 if
  /// the storage is 0.
  virtual void reduce(const Tensor& losses, const Number& divisor, const Number& storage, const Tensor& loss,
                      const Tensor& grad_scale) const = 0;

  /// The loss of a mean or a sum and, if `grad` is defined, the gradient and its grad_scale: by default with
  /// the steps above.
  virtual void reduced_loss(const CrossEntropyCall& call, const Number& storage, const Tensor& loss,
                            const Tensor& grad, const Tensor& grad_scale) const;

  /// out = grad * (grad_output * grad_scale), with one factor for all rows or one for each row. out may be
  /// grad. `target` has the class indices, whose ignored rows stay zeros; it is undefined with class
  /// probabilities.
  virtual void scale(const Tensor& grad_output, const Tensor& grad, const Tensor& grad_scale,
                     const Tensor& target, int64_t ignore_index, const Tensor& out) const = 0;

  /// The dtype to which class indices of the dtype `given` are converted for the kernels.
  virtual at::ScalarType index_type(at::ScalarType given) const { return given; }
  /// The power of two by which float16 gradients are scaled to get the format's full precision. |A p - a| is
  /// at most the largest mass of a row, and 2^15 is the largest power of two in float16.
  virtual Number half_storage(const CrossEntropyCall& call) const;
  /// The divisor of a mean with row weights: their sum, times the weights of the target classes, over the
  /// rows that are not ignored, in a fixed order. With one class index a row, whose range has been checked:
  /// NaN if all of these weights are 0.
  virtual Divisor weight_of_rows(const RowCall& call) const;
  virtual void set(const Tensor& scalar, double value) const;
  /// Memory for a result of the shape and dtype of `like`.
  virtual Tensor new_output(const Tensor& like) const;

 protected:
  ~CrossEntropyKernels() = default;
};

/// Sets a backend's kernels. Each backend calls this once, when the library is loaded.
bool set_cross_entropy_kernels(Backend backend, const CrossEntropyKernels& kernels);
/// The kernels of the backend that computes a device's tensors. Raises if there is none.
const CrossEntropyKernels& cross_entropy_kernels(c10::Device device);

/// The loss of cross_entropy_forward alone, for tensors that no mode and no wrapper watches.
Tensor cross_entropy_loss(const Tensor& self, const Tensor& target, const OptionalTensor& weight,
                          const SymCrossEntropyOptions& options);

/// Raises torch's exception for the first target that is out of range.
[[noreturn]] void raise_out_of_bounds(const CrossEntropyCall& call);

/// Shape of class-index targets, and of the loss without a reduction.
inline at::DimVector target_sizes(const Tensor& logits) {
  at::DimVector sizes(logits.sizes());
  sizes.erase(sizes.begin() + class_dim(logits));
  return sizes;
}

/// Whether grad_output is one factor for all rows. This includes the expanded gradient that loss.sum()
/// passes.
inline bool is_one_factor(const Tensor& grad_output) {
  for (int64_t i = 0; i < grad_output.dim(); ++i) {
    if (grad_output.size(i) != 1 && grad_output.stride(i) != 0) return false;
  }
  return true;
}

}  // namespace softkern
