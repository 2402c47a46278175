// SPDX-License-Identifier: Apache-2.0
// Derivatives of cross_entropy that no kernel computes, in ATen ops. Those of the logits are functions of the
// stored gradient G = (A p - a) / D, from which the probabilities p = (D G + a) / A are recovered: the logits
// are not kept. Names are those of csrc/cpu/kernels/cross_entropy.h; D is the divisor of a mean, otherwise 1.
#pragma once

#include <ATen/ops/ones.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <limits>

#include "../ops/checks.h"
#include "../ops/rows.h"
#include "output_node.h"

namespace softkern {
namespace {

/// The target mass a and values computed from it. Tensors have the compute type and, unless they are scalars,
/// as many dims as the logits.
class Masses {
 public:
  /// `like` has the shape of the logits. If target and weight have an autograd history, the masses have one
  /// too.
  Masses(const Tensor& like, const Tensor& target, const Tensor& weight, const CrossEntropyOptions& options)
      : dim_(class_dim(like)),
        indices_(!same_shape(like, target)),
        keep_(1 - options.label_smoothing),
        share_(options.label_smoothing / static_cast<double>(as_int(like.sym_size(dim_)))) {
    const at::ScalarType compute = compute_type(like);
    const at::TensorOptions numbers = like.options().dtype(compute);
    if (weight.defined()) {
      at::SymDimVector shape(static_cast<size_t>(like.dim()), 1);
      shape[static_cast<size_t>(dim_)] = weight.sym_size(0);
      weight_ = weight.to(compute).view_symint(shape);
    }
    if (!indices_) {
      spread_ = target.to(compute) * keep_ + share_;
      if (weight_.defined()) spread_ = spread_ * weight_;
      total_ = spread_.sum(dim_, /*keepdim=*/true);
      if (options.reduction == kMean) {
        divisor_ = at::ones({}, numbers).expand_symint(total_.sym_sizes()).sum();  // rows, maybe symbolic
      }
      return;
    }
    index_ = target.to(at::kLong).unsqueeze(dim_);
    counts_ = index_.ne(options.ignore_index);
    index_ = index_.masked_fill(counts_.logical_not(), 0);
    Tensor own = counts_.to(compute);  // w_y; 0 in ignored rows
    if (weight_.defined()) own = own * weight_.expand_symint(like.sym_sizes()).gather(dim_, index_);
    hot_ = own * keep_;
    total_ = hot_;
    if (share_ != 0) {
      spread_ = weight_.defined() ? weight_ * share_ : at::scalar_tensor(share_, numbers);
      const Tensor all =
          weight_.defined() ? spread_.sum() : at::scalar_tensor(options.label_smoothing, numbers);
      total_ = total_ + all * counts_;
    }
    if (options.reduction == kMean) {
      const Tensor nan = at::scalar_tensor(std::numeric_limits<double>::quiet_NaN(), numbers);
      divisor_ = at::where(own.ne(0).any(), own.sum(), nan);  // as in the kernels: NaN without weights
    }
  }

  /// Sets ignored rows to 0, whatever they hold.
  Tensor kept(const Tensor& x) const {
    return indices_ ? at::where(counts_, x, at::zeros({}, x.options())) : x;
  }
  Tensor over_divisor(const Tensor& x) const { return divisor_.defined() ? x / divisor_ : x; }
  const Tensor& total() const { return total_; }

  /// Recovers p from G, in the memory of G. In rows without mass p can't be recovered, but nothing depends on
  /// it.
  Tensor probabilities(Tensor gradient) const {
    if (divisor_.defined()) gradient.mul_(divisor_);
    if (spread_.defined()) gradient.add_(spread_);
    if (indices_) gradient.scatter_add_(dim_, index_, hot_);
    gradient.div_(total_.masked_fill(total_.eq(0), 1));
    return indices_ ? gradient.masked_fill_(counts_.logical_not(), 0) : gradient;
  }
  /// Computes G from p.
  Tensor gradient(const Tensor& p) const {
    Tensor x = total_ * p;
    if (spread_.defined()) x = x - spread_;
    if (indices_) x = x.scatter_add(dim_, index_, -hot_);
    return kept(over_divisor(x));
  }

  int64_t dim() const { return dim_; }
  double keep() const { return keep_; }
  const Tensor& weight() const { return weight_; }
  /// The mass a of class probabilities.
  const Tensor& spread() const { return spread_; }

 private:
  int64_t dim_;
  bool indices_;
  double keep_, share_;  // 1 - s, s/C
  Tensor weight_;        // (1, C, 1...); undefined: none
  Tensor spread_;        // mass of every class; undefined: none
  Tensor index_, hot_;   // (N, 1, d...): target class, 0 in ignored rows; its own mass
  Tensor counts_;        // (N, 1, d...): rows that are not ignored
  Tensor total_;         // A, (N, 1, d...)
  Tensor divisor_;       // D; undefined: 1
};

/// The upstream gradient, one for each row of logits or one for all.
inline Tensor by_row(const Tensor& grad_output, const Masses& masses, const CrossEntropyOptions& options,
                     at::ScalarType compute) {
  const Tensor g = grad_output.to(compute);
  return options.reduction == kNone ? g.unsqueeze(masses.dim()) : g;
}

/// The gradient as a function of the upstream gradient and of the logits, if it needs a graph. Derivatives of
/// this Node recover p; those of higher order go through ATen.
struct CrossEntropyGradientNode : SavingNode<CrossEntropyGradientNode> {
  SavedVariable grad_output;
  SavedVariable grad;  // G = grad * grad_scale
  SavedVariable grad_scale;
  SavedVariable target;
  SavedVariable weight;
  CrossEntropyOptions options;

  std::string name() const override { return "SoftkernCrossEntropyBackwardBackward"; }
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Tensor& upstream = grads[0];  // (N, C, d...)
    if (!upstream.defined()) return {Tensor(), Tensor()};
    const Tensor stored = grad.unpack(), scale = grad_scale.unpack(), g = grad_output.unpack();
    const at::ScalarType compute = scale.scalar_type();
    const Masses masses(stored, target.unpack(), weight.unpack(), options);
    Tensor gradient, p;
    {
      const at::AutoGradMode no_graph(false);
      gradient = stored.to(compute) * scale;
      p = masses.probabilities(gradient.clone());
    }
    const int64_t dim = masses.dim();
    if (at::GradMode::is_enabled()) {
      set_output_history<SoftmaxOp>(p, dim, {next_edge(1)});
      gradient = masses.gradient(p);
    }
    const Tensor v = upstream.to(compute);
    Tensor of_upstream, of_logits;
    if (task_should_compute_output(0)) {
      const Tensor products = v * gradient;
      of_upstream = (options.reduction == kNone ? products.sum(dim) : products.sum()).to(g.scalar_type());
    }
    if (task_should_compute_output(1)) {
      const Tensor row = by_row(g, masses, options, compute);
      const Tensor of_p = masses.kept(v * masses.over_divisor(row * masses.total()));
      if (at::GradMode::is_enabled()) {
        of_logits = SoftmaxOp::differentiable_backward(of_p, p, dim).to(stored.scalar_type());
      } else {
        const at::AutoDispatchBelowADInplaceOrView below;
        of_logits = SoftmaxOp::backward(of_p, p, dim).to(stored.scalar_type());
      }
    }
    return {of_upstream, of_logits};
  }
  void compiled_args(CompiledNodeArgs& args) const override {
    collect_saved(args);
    collect(args, options);
  }

  static constexpr SavedVariable CrossEntropyGradientNode::* kSaved[] = {
      &CrossEntropyGradientNode::grad_output, &CrossEntropyGradientNode::grad,
      &CrossEntropyGradientNode::grad_scale, &CrossEntropyGradientNode::target,
      &CrossEntropyGradientNode::weight};
  static size_t used() { return std::size(kSaved); }
};

/// The gradients of class probabilities and of weights, computed from log p. With the upstream gradient g of
/// a row,
///   dt_c = -g w_c (1 - s) log p_c / D,   dw_c = -sum over rows of g ((1 - s) t_c + s/C) log p_c / D.
inline Tensor probability_gradient(const Tensor& row, const Tensor& log_p, const Masses& masses) {
  const Tensor result = log_p * (masses.over_divisor(row) * -masses.keep());
  return masses.weight().defined() ? result * masses.weight() : result;
}
inline Tensor weight_gradient(const Tensor& row, const Tensor& log_p, const Masses& unweighted) {
  const int64_t dim = unweighted.dim();
  Tensor products = unweighted.spread() * log_p * unweighted.over_divisor(row);
  at::DimVector others;
  for (int64_t i = 0; i < products.dim(); ++i) {
    if (i != dim) others.push_back(i);
  }
  return -(others.empty() ? products : products.sum(others));
}

}  // namespace
}  // namespace softkern
