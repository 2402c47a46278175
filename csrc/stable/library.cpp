// SPDX-License-Identifier: Apache-2.0
// The library of ops in the stable build, and the softmaxes on the devices that have kernels. Everything
// above the kernels in the dispatcher is registered by Python: autograd, transforms, and ATen for what no
// kernel takes.
#include "../ops/checks.h"
#include "../ops/ops.h"

#include <torch/library.h>

namespace softkern {
namespace {

/// Python has asked already, except for calls of the op itself on tensors without autograd.
template <auto kRoute>
Tensor softmax_on_device(const Tensor& self, int64_t dim) {
  TORCH_CHECK(takes_tensor(self), "softkern: the kernels don't take a tensor of ", self.scalar_type(), " on ",
              self.device(), "; call softkern.softmax or softkern.log_softmax");
  return kRoute(self, dim);
}

void register_softmaxes(torch::Library& m) {
  m.impl(softmax.kName, TORCH_FN(&softmax_on_device<&softmax.route>));
  m.impl(log_softmax.kName, TORCH_FN(&softmax_on_device<&log_softmax.route>));
  m.impl(softmax_backward.kName, TORCH_FN(&softmax_backward.route));
  m.impl(log_softmax_backward.kName, TORCH_FN(&log_softmax_backward.route));
}

}  // namespace

TORCH_LIBRARY(softkern, m) {
  for_each_op([&](const auto& op) { m.def(op.kSchema); });
}

TORCH_LIBRARY_IMPL(softkern, CPU, m) { register_softmaxes(m); }
TORCH_LIBRARY_IMPL(softkern, CUDA, m) { register_softmaxes(m); }
TORCH_LIBRARY_IMPL(softkern, XPU, m) { register_softmaxes(m); }

}  // namespace softkern

/// For the checks in Python: whether a backend computes tensors on a device. -1: the backend that was asked
/// for by name raised an exception, which the op will raise, too.
extern "C" __attribute__((visibility("default"))) int softkern_computes_on(int device_type, int index) {
  try {
    const c10::Device device(static_cast<c10::DeviceType>(device_type), index);
    return softkern::backend_for(device) != softkern::Backend::kNone ? 1 : 0;
  } catch (...) {
    return -1;
  }
}
