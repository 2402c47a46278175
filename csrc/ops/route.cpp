// SPDX-License-Identifier: Apache-2.0
// The ops at the keys of the devices: each call goes to the backend that computes the tensor.
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/softmax.h>
#include <torch/library.h>

#include "checks.h"
#include "cpu/cpu.h"
#include "fallback.h"
#include "ops.h"
#include "triton/triton.h"
#ifdef SOFTKERN_WITH_CUDA
#include "cuda/cuda.h"
#endif

namespace softkern {
namespace {

using at::Tensor;

struct Ops {
  decltype(&softkern::softmax) softmax;
  decltype(&softkern::log_softmax) log_softmax;
  decltype(&softkern::softmax_backward) softmax_backward;
  decltype(&softkern::log_softmax_backward) log_softmax_backward;
  decltype(&softkern::cross_entropy_forward) cross_entropy_forward;
  decltype(&softkern::cross_entropy_forward_) cross_entropy_forward_;
  decltype(&softkern::cross_entropy_backward) cross_entropy_backward;
  decltype(&softkern::cross_entropy_backward_) cross_entropy_backward_;
};

// A macro, since no template takes a namespace.
#define SOFTKERN_OPS_OF(backend)     \
  {&backend::softmax,                \
   &backend::log_softmax,            \
   &backend::softmax_backward,       \
   &backend::log_softmax_backward,   \
   &backend::cross_entropy_forward,  \
   &backend::cross_entropy_forward_, \
   &backend::cross_entropy_backward, \
   &backend::cross_entropy_backward_}

constexpr Ops kCpuOps = SOFTKERN_OPS_OF(cpu);
constexpr Ops kTritonOps = SOFTKERN_OPS_OF(triton);
#ifdef SOFTKERN_WITH_CUDA
constexpr Ops kCudaOps = SOFTKERN_OPS_OF(cuda);
#endif

#undef SOFTKERN_OPS_OF

const Ops& ops_for(const Tensor& x) {
  switch (backend_for(x.device())) {
    case Backend::kCpu:
      return kCpuOps;
#ifdef SOFTKERN_WITH_CUDA
    case Backend::kCuda:
      return kCudaOps;
#endif
    case Backend::kTriton:
      return kTritonOps;
    default:
      break;
  }
  const std::string named = required();
  TORCH_CHECK(!named.empty(), "no backend of softkern computes tensors on ", x.device(),
              " here: softkern.backends() says why");
  TORCH_CHECK(false, "backend '", named, "' was asked for and does not compute tensors on ", x.device());
}

// Inference tensors come to the softmaxes past autograd's checks.
Tensor route_softmax(const Tensor& self, int64_t dim) {
  if (!takes_tensor(self)) return by_aten(at::softmax(self, dim));
  return ops_for(self).softmax(self, dim);
}

Tensor route_log_softmax(const Tensor& self, int64_t dim) {
  if (!takes_tensor(self)) return by_aten(at::log_softmax(self, dim));
  return ops_for(self).log_softmax(self, dim);
}

Tensor route_softmax_backward(const Tensor& grad_output, const Tensor& output, int64_t dim) {
  return ops_for(output).softmax_backward(grad_output, output, dim);
}

Tensor route_log_softmax_backward(const Tensor& grad_output, const Tensor& output, int64_t dim) {
  return ops_for(output).log_softmax_backward(grad_output, output, dim);
}

std::tuple<Tensor, Tensor, Tensor> route_cross_entropy_forward(const Tensor& self, const Tensor& target,
                                                               const OptionalTensor& weight,
                                                               int64_t reduction, c10::SymInt ignore_index,
                                                               double label_smoothing, bool need_grad) {
  return ops_for(self).cross_entropy_forward(self, target, weight, reduction, std::move(ignore_index),
                                             label_smoothing, need_grad);
}

std::tuple<Tensor, Tensor> route_cross_entropy_forward_(Tensor self, const Tensor& target,
                                                        const OptionalTensor& weight, int64_t reduction,
                                                        c10::SymInt ignore_index, double label_smoothing) {
  const Ops& ops = ops_for(self);
  return ops.cross_entropy_forward_(std::move(self), target, weight, reduction, std::move(ignore_index),
                                    label_smoothing);
}

Tensor route_cross_entropy_backward(const Tensor& grad_output, const Tensor& grad, const Tensor& grad_scale,
                                    const Tensor& target, c10::SymInt ignore_index) {
  return ops_for(grad).cross_entropy_backward(grad_output, grad, grad_scale, target, std::move(ignore_index));
}

void route_cross_entropy_backward_(const Tensor& grad_output, Tensor grad, const Tensor& grad_scale,
                                   const Tensor& target, c10::SymInt ignore_index) {
  const Ops& ops = ops_for(grad);
  ops.cross_entropy_backward_(grad_output, std::move(grad), grad_scale, target, std::move(ignore_index));
}

void register_ops(torch::Library& m) {
  m.impl("softmax", &route_softmax);
  m.impl("log_softmax", &route_log_softmax);
  m.impl("softmax_backward", &route_softmax_backward);
  m.impl("log_softmax_backward", &route_log_softmax_backward);
  m.impl("cross_entropy_forward", &route_cross_entropy_forward);
  m.impl("cross_entropy_forward_", &route_cross_entropy_forward_);
  m.impl("cross_entropy_backward", &route_cross_entropy_backward);
  m.impl("cross_entropy_backward_", &route_cross_entropy_backward_);
}

}  // namespace

TORCH_LIBRARY_IMPL(softkern, CPU, m) { register_ops(m); }
TORCH_LIBRARY_IMPL(softkern, CUDA, m) { register_ops(m); }
TORCH_LIBRARY_IMPL(softkern, XPU, m) { register_ops(m); }

// Nested tensors on any device, with and without autograd: CompositeExplicitAutograd leaves them out.
TORCH_LIBRARY_IMPL(softkern, CompositeImplicitAutogradNestedTensor, m) {
  m.impl("softmax", &route_softmax);
  m.impl("log_softmax", &route_log_softmax);
}

}  // namespace softkern
