// SPDX-License-Identifier: Apache-2.0
// The library of ops in the stable build, and the softmaxes on the devices that have kernels. Everything
// above the kernels in the dispatcher is registered by Python: autograd, transforms, and ATen for what no
// kernel takes.
#include "../ops/checks.h"
#include "../ops/linear_cross_entropy/plan.h"
#include "../ops/ops.h"

#include <torch/library.h>

namespace {
thread_local std::string plan_error;
}  // namespace

namespace softkern {
namespace {

/// Python has asked already, except for calls of the op itself on tensors without autograd.
template <auto kRoute>
Tensor softmax_on_device(const Tensor& self, int64_t dim) {
  TORCH_CHECK(takes_tensor(self), "softkern: the kernels don't take a tensor of ", self.scalar_type(), " on ",
              self.device(), "; call the function of softkern");
  return kRoute(self, dim);
}

void register_softmaxes(torch::Library& m) {
  for_each_softmax_op([&](auto op) {
    using Op = decltype(op);
    if constexpr (std::is_same_v<typename Op::Function, decltype(softmax)::Function>) {
      m.impl(Op::kName, TORCH_FN(&softmax_on_device<&Op::route>));
    } else {
      m.impl(Op::kName, TORCH_FN(&Op::route));
    }
  });
}

}  // namespace

TORCH_LIBRARY(softkern, m) {
  for_each_op([&](const auto& op) { m.def(op.kSchema); });
}

TORCH_LIBRARY_IMPL(softkern, CPU, m) { register_softmaxes(m); }
TORCH_LIBRARY_IMPL(softkern, CUDA, m) { register_softmaxes(m); }
TORCH_LIBRARY_IMPL(softkern, XPU, m) { register_softmaxes(m); }

}  // namespace softkern

// Functions of C for Python, beside those of c_api.cpp.

#define SOFTKERN_C extern "C" __attribute__((visibility("default")))

/// For the checks in Python: whether a backend computes tensors on a device. -1: the backend that was asked
/// for by name raised an exception, which the op will raise, too.
SOFTKERN_C int softkern_computes_on(int device_type, int index) {
  try {
    const c10::Device device(static_cast<c10::DeviceType>(device_type), index);
    return softkern::backend_for(device) != softkern::Backend::kNone ? 1 : 0;
  } catch (...) {
    return -1;
  }
}

/// The plan of a call of linear_cross_entropy whose memory is limited (linear_cross_entropy/plan.h): its
/// number, or 0 if the limit is too small; softkern_plan_error() says for what.
SOFTKERN_C int softkern_chosen_plan(int64_t rows, int64_t classes, int64_t features, int bytes, int on_cpu,
                                    int64_t plan, int64_t outputs, int64_t reduction, int64_t max_bytes,
                                    int64_t chunk_rows, int64_t needs, int is_half) {
  const softkern::LinearShape shape{
      rows, classes, features, std::max(bytes, 4), bytes, bytes == 2 && on_cpu == 0, on_cpu != 0};
  softkern::LinearOptions options;
  options.plan = plan;
  options.outputs = outputs;
  options.reduction = reduction;
  options.max_bytes = max_bytes;
  options.chunk_rows = chunk_rows;
  try {
    return static_cast<int>(softkern::chosen_plan(shape, options, needs, is_half != 0));
  } catch (const std::exception& error) {
    plan_error = error.what();
    return 0;
  }
}
SOFTKERN_C const char* softkern_plan_error() { return plan_error.c_str(); }
