// SPDX-License-Identifier: Apache-2.0
// Shared by the autograd files. The Nodes are written by hand, because torch::autograd::Function would unpack
// every saved tensor at once. The weights of a loss, which only a double backward needs, may have been
// modified in place since the forward (F allows this).
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>
#include <torch/library.h>

#include "../ops/options.h"

namespace softkern {
using at::Tensor;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;
using torch::dynamo::autograd::CompiledNodeArgs;
using torch::dynamo::autograd::SwapSavedVariables;

// torch 2.11 owns nodes by shared_ptr, 2.13 by intrusive_ptr.
using NodePtr = decltype(torch::autograd::Edge::function);

template <class N>
c10::intrusive_ptr<N> make_node(const c10::intrusive_ptr<Node>*) {
  return c10::make_intrusive<N>();
}
template <class N>
std::shared_ptr<N> make_node(const std::shared_ptr<Node>*) {
  return std::shared_ptr<N>(new N(), [](N* node) { deleteNode(node); });
}
template <class N>
auto make_node() {
  return make_node<N>(static_cast<const NodePtr*>(nullptr));
}

/// The options are part of what identifies a Node for compiled autograd.
inline void collect(CompiledNodeArgs& args, const CrossEntropyOptions& options) {
  std::apply([&](const auto&... field) { (args.collect(field), ...); }, fields(options));
}

/// A Node that lists its saved variables once, in `N::kSaved`. Compiled autograd needs the first `used()` of
/// them.
template <class N>
struct SavingNode : Node {
  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto v : N::kSaved) (self().*v).reset_data();
  }
  variable_list apply_with_saved(const variable_list& grads, SwapSavedVariables& saved) override {
    for_each_used(self(), [&](SavedVariable& v) { saved.before(v); });
    variable_list result = apply(variable_list(grads));
    for_each_used(self(), [&](SavedVariable& v) { saved.after(v); });
    return result;
  }

 protected:
  void collect_saved(CompiledNodeArgs& args) const {
    for_each_used(static_cast<const N&>(*this), [&](const SavedVariable& v) { args.collect(v, false); });
  }

 private:
  N& self() { return static_cast<N&>(*this); }
  template <class Own, class F>
  static void for_each_used(Own& node, F f) {
    const size_t count = node.used();
    for (size_t i = 0; i < count; ++i) f(node.*N::kSaved[i]);
  }
};

/// Whether a functorch transform has wrapped the tensor. Batched is an older key, which
/// torch.autograd.grad(..., is_grads_batched=True) still uses.
inline bool is_transformed(const Tensor& x) {
  return x.key_set().has_any(
      c10::DispatchKeySet({c10::DispatchKey::FuncTorchGradWrapper, c10::DispatchKey::FuncTorchBatched,
                           c10::DispatchKey::Batched}));
}

/// Transformed tensors and tensors with a forward-mode tangent: ATen's composite ops support them, to any
/// order.
inline bool wants_composite(const Tensor& x) {
  return x.defined() && (is_transformed(x) || x._fw_grad(/*level=*/0).defined());
}

/// Whether the tensor is no fake, functional, batched or other wrapper: it has values to read and memory to
/// overwrite.
inline bool is_plain(const Tensor& x) {
  return !is_transformed(x) && !x.key_set().has_any(c10::DispatchKeySet(
                                   {c10::DispatchKey::Python, c10::DispatchKey::Functionalize}));
}

}  // namespace softkern
