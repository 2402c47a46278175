// SPDX-License-Identifier: Apache-2.0
#include "aten.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <cmath>
#include <limits>

#include "../fallback.h"
#include "../rows.h"

namespace softkern {
namespace {

/// The quantities of a call. Tensors of classes have the logits' dims, those of rows have a class dimension
/// of size 1.
class AtenRows {
 public:
  AtenRows(const RowTensors& of, const SymRowOptions& options)
      : of_(of),
        options_(options),
        kind_(of.kind()),
        dim_(class_dim(of.self)),
        compute_(compute_type(of.self)),
        valid_(valid_classes(of.self, options)),
        x_(narrowed(of.self).to(compute_)) {
    set_indices();
    // Zeros, because the gradient of where() does not reach what it has not selected: 0 * NaN must not arise.
    x_ = kept(x_);
    masked_ = x_.eq(-std::numeric_limits<double>::infinity());
    if (options.softcap != 0) {
      tanh_ = (x_ * (options.logit_scale / options.softcap)).tanh();
      z_ = tanh_ * (options.softcap / options.temperature);
    } else {
      z_ = x_ * (options.logit_scale / options.temperature);
    }
    z_ = where(masked_, x_, z_);
    log_p_ = at::log_softmax(z_, dim_);
    lse_ = at::logsumexp(z_, dim_, /*keepdim=*/true);
    set_masses();
  }

  Tensor lse() const { return lse_; }
  Tensor entropy() const {
    const Tensor held = log_p_.masked_fill(masked_, 0);
    return -(log_p_.exp() * held).sum(dim_, /*keepdim=*/true);
  }
  /// Of the indices; 0 in ignored rows.
  Tensor log_prob() const { return kept(log_p_.gather(dim_, index_)); }
  Tensor argmax() const {
    const Tensor found = z_.argmax(dim_, /*keepdim=*/true);
    return ignores() ? found.masked_fill(kept_.logical_not(), -1) : found;
  }
  Tensor correct() const { return argmax().eq(index_).logical_and(kept_); }
  Tensor losses() const {
    Tensor loss = zero();
    if (hot_.defined()) loss = loss - (hot_ * log_p_.gather(dim_, index_)).sum(dim_, true);
    if (spread_.defined()) loss = loss - (spread_ * log_p_).sum(dim_, true);
    if (options_.z_loss != 0) loss = loss + own_ * lse_.square() * options_.z_loss;
    return kept(weighted(loss));
  }
  /// What a mean divides by; undefined without a mean.
  Tensor divisor() const {
    if (options_.reduction != kMean) return {};
    if (of_.num_items.defined()) return of_.num_items.to(compute_);
    const Tensor ones = at::ones_like(zero());
    if (!ignores()) return weighted(ones).sum();
    const Tensor all = weighted(kept(own_ * ones));
    return where(all.ne(0).any(), all.sum(), number(std::numeric_limits<double>::quiet_NaN()));
  }

  /// Takes rows of the given dtype to the shape of the results: without the class dimension unless it has K
  /// classes.
  Tensor without_classes(const Tensor& rows) const { return rows.squeeze(dim_); }
  Tensor log_prob_result() const {
    return kind_ == TargetKind::kIndices ? log_prob() : without_classes(log_prob());
  }
  /// 0 in ignored rows.
  Tensor kept(const Tensor& rows) const {
    return ignores() ? at::where(kept_, rows, at::zeros({}, rows.options())) : rows;
  }

  Tensor gradient(const RowUpstream& upstream) const {
    const auto by_row = [&](const Tensor& g) { return g.to(compute_).unsqueeze(dim_); };
    const Tensor p = log_p_.exp();
    Tensor alpha = zero(), dz;
    Tensor g;  // upstream gradient of the rows' losses
    if (upstream.loss.defined()) {
      g = options_.reduction == kNone ? by_row(upstream.loss) : upstream.loss.to(compute_);
      if (const Tensor d = divisor(); d.defined()) g = g / d;
      g = weighted(g);
      Tensor all = zero();
      if (hot_.defined()) all = all + hot_.sum(dim_, true);
      if (spread_.defined()) all = all + spread_total();
      if (options_.z_loss != 0) all = all + own_ * lse_ * (2 * options_.z_loss);
      alpha = alpha + g * all;
    }
    if (upstream.lse.defined()) alpha = alpha + by_row(upstream.lse);
    Tensor of_log_prob;
    if (upstream.log_prob.defined()) {
      of_log_prob =
          kind_ == TargetKind::kIndices ? upstream.log_prob.to(compute_) : by_row(upstream.log_prob);
      alpha = alpha - of_log_prob.sum(dim_, true);
    }
    dz = p * alpha;
    if (upstream.entropy.defined()) {
      const Tensor below = -log_p_.masked_fill(masked_, 0);  // lse - z would lose the digits of an offset
      dz = dz + p * by_row(upstream.entropy) * (below - entropy());
    }
    if (g.defined() && spread_.defined()) dz = dz - g * spread_;
    Tensor at_index;
    if (of_log_prob.defined()) at_index = of_log_prob;
    if (g.defined() && hot_.defined()) {
      const Tensor of_loss = -(g * hot_);
      at_index = at_index.defined() ? at_index + of_loss : of_loss;
    }
    if (at_index.defined()) dz = dz.scatter_add(dim_, index_, at_index.expand_symint(index_.sym_sizes()));
    Tensor dx = dz * (options_.logit_scale / options_.temperature);
    if (tanh_.defined()) dx = dx * (1 - tanh_.square()).masked_fill(masked_, 0);
    dx = kept(dx);
    if (valid_ != of_.self.sym_size(dim_)) {
      c10::SymDimVector rest(dx.sym_sizes());
      rest[static_cast<size_t>(dim_)] = of_.self.sym_size(dim_) - valid_;
      dx = at::cat({dx, at::zeros_symint(rest, dx.options())}, dim_);
    }
    return dx.to(of_.self.scalar_type());
  }

 private:
  static Tensor where(const Tensor& condition, const Tensor& a, const Tensor& b) {
    return at::where(condition, a, b);
  }
  Tensor number(double value) const { return at::scalar_tensor(value, x_.options()); }
  /// A row's 0, also of a tensor without classes.
  Tensor zero() const { return at::zeros_like(lse_); }
  Tensor narrowed(const Tensor& classes) const {
    return valid_ == classes.sym_size(dim_) ? classes : classes.narrow_symint(dim_, 0, valid_);
  }
  Tensor weighted(const Tensor& rows) const {
    return of_.row_weight.defined() ? rows * of_.row_weight.to(compute_).unsqueeze(dim_) : rows;
  }
  bool ignores() const { return kind_ == TargetKind::kIndex; }

  void set_indices() {
    if (kind_ == TargetKind::kNone || kind_ == TargetKind::kProbabilities) return;
    index_ = of_.target.to(at::kLong);
    if (kind_ != TargetKind::kIndex) return;
    index_ = index_.unsqueeze(dim_);
    kept_ = index_.ne(options_.ignore_index);
    index_ = index_.masked_fill(kept_.logical_not(), 0);
  }
  void set_masses() {
    own_ = number(1);
    if (kind_ == TargetKind::kNone) return;
    const double s = options_.label_smoothing, keep = 1 - s;
    Tensor weight;
    if (of_.weight.defined()) {
      c10::SymDimVector shape(static_cast<size_t>(of_.self.dim()), 1);
      shape[static_cast<size_t>(dim_)] = valid_;
      weight = of_.weight.narrow_symint(0, 0, valid_).to(compute_).view_symint(shape);
    }
    const Tensor share = number(s) / at::scalar_tensor(valid_, x_.options());
    if (kind_ == TargetKind::kProbabilities) {
      spread_ = narrowed(of_.target).to(compute_) * keep + share;
      if (weight.defined()) spread_ = spread_ * weight;
      return;
    }
    const bool massive = kind_ == TargetKind::kIndex || of_.target_probs.defined();
    if (!massive) return;
    hot_ = kind_ == TargetKind::kIndex ? at::ones_like(index_, x_.options()) : of_.target_probs.to(compute_);
    if (weight.defined()) {
      const Tensor of_index = weight.expand_symint(x_.sym_sizes()).gather(dim_, index_);
      if (kind_ == TargetKind::kIndex) own_ = of_index;
      hot_ = hot_ * of_index;
    }
    hot_ = kept(hot_ * keep);
    if (s != 0) spread_ = weight.defined() ? weight * share : share.expand_symint(x_.sym_sizes());
  }
  Tensor spread_total() const {
    const Tensor all = spread_.expand_symint(x_.sym_sizes());
    return all.sum(dim_, true);
  }

  const RowTensors& of_;
  const SymRowOptions& options_;
  TargetKind kind_;
  int64_t dim_;
  at::ScalarType compute_;
  c10::SymInt valid_;
  Tensor x_, masked_;  // the logits that are read; whether they are -inf
  Tensor z_, tanh_, log_p_, lse_;
  Tensor index_, kept_;  // class indices, 0 in ignored rows; the rows that are not ignored
  Tensor hot_, spread_;  // masses of the indices and of all classes; undefined: none
  Tensor own_;           // the weight of the target class, else 1
};

Tensor not_wanted(const Tensor& like, at::ScalarType type) {
  return at::empty({0}, like.options().dtype(type));
}

}  // namespace

RowResults row_losses_in_aten(const RowTensors& of, const SymRowOptions& options) {
  const AtenRows rows(of, options);
  const at::ScalarType compute = compute_type(of.self);
  const auto wanted = [&](int64_t output) { return (options.outputs & output) != 0; };
  RowResults results{not_wanted(of.self, of.self.scalar_type()),
                     not_wanted(of.self, compute),
                     not_wanted(of.self, compute),
                     not_wanted(of.self, compute),
                     not_wanted(of.self, at::kLong),
                     not_wanted(of.self, at::kBool)};
  auto& [loss, log_prob, lse, entropy, argmax, correct] = results;
  if (wanted(kLoss)) {
    loss = rows.without_classes(rows.losses());
    if (options.reduction != kNone) loss = loss.sum();
    if (const Tensor divisor = rows.divisor(); divisor.defined()) loss = loss / divisor;
    loss = loss.to(of.self.scalar_type());
  }
  if (wanted(kLogProb)) log_prob = rows.log_prob_result();
  if (wanted(kLse)) lse = rows.without_classes(rows.kept(rows.lse()));
  if (wanted(kEntropy)) entropy = rows.without_classes(rows.kept(rows.entropy()));
  if (wanted(kArgmax)) argmax = rows.without_classes(rows.argmax());
  if (wanted(kCorrect)) correct = rows.without_classes(rows.correct());
  return results;
}

RowResults row_losses_by_aten(const RowTensors& of, const SymRowOptions& options) {
  RowResults results = row_losses_in_aten(of, options);
  by_aten(std::get<0>(results));
  return results;
}

Tensor row_losses_gradient_in_aten(const RowUpstream& upstream, const RowTensors& of,
                                   const SymRowOptions& options) {
  return AtenRows(of, options).gradient(upstream);
}

}  // namespace softkern
