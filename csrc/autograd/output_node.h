// SPDX-License-Identifier: Apache-2.0
// The Node of an op whose gradient is a function of its output: softmax, log_softmax.
#pragma once

#include <ATen/ops/_log_softmax_backward_data.h>
#include <ATen/ops/_softmax_backward_data.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/softmax.h>

#include "../ops/fallback.h"
#include "../ops/ops.h"
#include "node.h"

namespace softkern {
namespace {

struct SoftmaxOp {
  static constexpr const char* kName = "SoftkernSoftmaxBackward";
  static constexpr const auto& forward = softkern::softmax;
  static constexpr const auto& backward = softkern::softmax_backward;
  static Tensor torchs(const Tensor& x, int64_t dim) { return at::softmax(x, dim); }
  static Tensor composite(const Tensor& x, int64_t dim) { return by_aten(torchs(x, dim)); }
  static Tensor differentiable_backward(const Tensor& g, const Tensor& y, int64_t dim) {
    return at::_softmax_backward_data(g, y, dim, y.scalar_type());
  }
};

struct LogSoftmaxOp {
  static constexpr const char* kName = "SoftkernLogSoftmaxBackward";
  static constexpr const auto& forward = softkern::log_softmax;
  static constexpr const auto& backward = softkern::log_softmax_backward;
  static Tensor torchs(const Tensor& x, int64_t dim) { return at::log_softmax(x, dim); }
  static Tensor composite(const Tensor& x, int64_t dim) { return by_aten(torchs(x, dim)); }
  static Tensor differentiable_backward(const Tensor& g, const Tensor& y, int64_t dim) {
    return at::_log_softmax_backward_data(g, y, dim, y.scalar_type());
  }
};

/// Calls f(Op()) for both ops.
template <class F>
void for_each_softmax(F f) {
  f(SoftmaxOp());
  f(LogSoftmaxOp());
}

template <class Op>
struct OutputNode : Node {
  SavedVariable output;
  int64_t dim = 0;

  std::string name() const override { return Op::kName; }
  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    output.reset_data();
  }
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Tensor& g = grads[0];
    if (!g.defined() || !task_should_compute_output(0)) return {Tensor()};
    const Tensor y = output.unpack(getptr());
    if (at::GradMode::is_enabled()) return {Op::differentiable_backward(g, y, dim)};
    const at::AutoDispatchBelowADInplaceOrView guard;
    return {Op::backward(g, y, dim)};
  }
  void compiled_args(CompiledNodeArgs& args) const override {
    args.collect(output, /*is_output=*/true);
    args.collect(dim);
  }
  variable_list apply_with_saved(const variable_list& grads, SwapSavedVariables& saved) override {
    saved.before(output);
    saved.before(dim);
    variable_list result = apply(variable_list(grads));
    saved.after(output);
    saved.after(dim);
    return result;
  }
};

/// Records `output` as the op's result for the tensor whose gradient edge is `input`.
template <class Op>
void set_output_history(const Tensor& output, int64_t dim, torch::autograd::edge_list&& input) {
  auto node = make_node<OutputNode<Op>>();
  node->set_next_edges(std::move(input));
  node->dim = dim;
  torch::autograd::set_history(output, node);
  node->output = SavedVariable(output, /*is_output=*/true);
}

}  // namespace
}  // namespace softkern
