// SPDX-License-Identifier: Apache-2.0
// The arguments of row_losses, and which of them the kernels take: the others are computed by aten.h. As in
// ops/checks.h, fake tensors and symbolic sizes pass too.
#pragma once

#include "../checks.h"
#include "../op.h"

namespace softkern {

using at::Tensor;

/// What the targets are. A tensor of class indices has one index a row, or K of them in the class dimension.
enum class TargetKind { kNone, kIndex, kIndices, kProbabilities };

/// Undefined: not given.
struct RowTensors {
  Tensor self, target, weight, row_weight, num_items, target_probs;

  RowTensors(const Tensor& logits, const OptionalTensor& y, const OptionalTensor& w, const OptionalTensor& r,
             const OptionalTensor& n, const OptionalTensor& t)
      : self(logits),
        target(y.value_or(Tensor())),
        weight(w.value_or(Tensor())),
        row_weight(r.value_or(Tensor())),
        num_items(n.value_or(Tensor())),
        target_probs(t.value_or(Tensor())) {}

  TargetKind kind() const {
    if (!target.defined()) return TargetKind::kNone;
    if (at::isFloatingType(target.scalar_type())) return TargetKind::kProbabilities;
    return target.dim() == self.dim() ? TargetKind::kIndices : TargetKind::kIndex;
  }
  /// Calls f(tensor) for the tensors that are given.
  template <class F>
  void each(F f) const {
    for (const Tensor* x : {&self, &target, &weight, &row_weight, &num_items, &target_probs}) {
      if (x->defined()) f(*x);
    }
  }
  template <class F>
  bool any(F f) const {
    bool found = false;
    each([&](const Tensor& x) { found = found || f(x); });
    return found;
  }
};

/// Whether x has the sizes of the logits without, or with any, class dimension.
inline bool fits_rows(const Tensor& logits, const Tensor& x, bool with_classes) {
  const int64_t skip = class_dim(logits);
  if (x.dim() != logits.dim() - (with_classes ? 0 : 1)) return false;
  for (int64_t i = 0; i < logits.dim(); ++i) {
    if (i == skip) continue;
    const auto equal = x.sym_size(!with_classes && i > skip ? i - 1 : i).sym_eq(logits.sym_size(i));
    if (!equal.expect_true(__FILE__, __LINE__)) return false;
  }
  return true;
}

inline bool is_row_number(const Tensor& logits, const Tensor& x, bool with_classes) {
  return x.layout() == at::kStrided && !x.is_nested() && x.device() == logits.device() &&
         (x.scalar_type() == logits.scalar_type() || x.scalar_type() == at::kFloat) &&
         fits_rows(logits, x, with_classes);
}

inline bool takes_row_losses(const RowTensors& of, const SymRowOptions& options) {
  const Tensor& x = of.self;
  if (!takes_tensor(x) || x.dim() < 1 || !takes_options(options)) return false;
  const int64_t c = class_dim(x);
  if (TORCH_GUARD_OR_FALSE(x.sym_size(c).sym_eq(0))) return false;
  const TargetKind kind = of.kind();
  if (of.target.defined() &&
      (of.target.layout() != at::kStrided || of.target.device() != x.device() || of.target.is_nested())) {
    return false;
  }
  if (kind == TargetKind::kNone && (options.outputs & (kLoss | kLogProb | kCorrect)) != 0) return false;
  if (kind == TargetKind::kProbabilities &&
      (!same_shape(x, of.target) || of.target.scalar_type() != x.scalar_type())) {
    return false;
  }
  if (kind == TargetKind::kIndex && !indices_fit(x, of.target)) return false;
  if (kind == TargetKind::kIndices &&
      (!takes_index_dtype(of.target.scalar_type()) || !fits_rows(x, of.target, true) ||
       ((options.outputs & kLoss) != 0 && !of.target_probs.defined()))) {
    return false;
  }
  if (kind != TargetKind::kIndex && (options.outputs & kCorrect) != 0) return false;
  if (kind == TargetKind::kProbabilities && (options.outputs & kLogProb) != 0) return false;
  if (of.target_probs.defined() &&
      (kind != TargetKind::kIndices || !is_row_number(x, of.target_probs, true) ||
       !of.target_probs.sym_size(c).sym_eq(of.target.sym_size(c)).expect_true(__FILE__, __LINE__))) {
    return false;
  }
  if (of.row_weight.defined() && !is_row_number(x, of.row_weight, false)) return false;
  if (of.num_items.defined() && (of.num_items.dim() != 0 || of.num_items.device() != x.device() ||
                                 at::isComplexType(of.num_items.scalar_type()))) {
    return false;
  }
  if (of.weight.defined() &&
      (of.weight.is_nested() || of.weight.dim() != 1 || of.weight.scalar_type() != x.scalar_type() ||
       of.weight.device() != x.device() || of.weight.layout() != at::kStrided ||
       !of.weight.sym_size(0).sym_eq(x.sym_size(c)).expect_true(__FILE__, __LINE__))) {
    return false;
  }
  return true;
}

/// The number of classes that are read.
inline c10::SymInt valid_classes(const Tensor& logits, const SymRowOptions& options) {
  const c10::SymInt all = logits.sym_size(class_dim(logits));
  return options.valid_classes < 0 ? all : options.valid_classes;
}

}  // namespace softkern
