// SPDX-License-Identifier: Apache-2.0
#include "onnx.h"

#include <ATen/ops/cross_entropy_loss.h>

namespace softkern {
namespace {

std::function<bool()>& onnx_probe() {
  // Never destroyed: a thread may ask while the process ends.
  static auto& probe = *new std::function<bool()>;
  return probe;
}

}  // namespace

bool exports_to_onnx() { return onnx_probe() && onnx_probe()(); }

void set_onnx_probe(std::function<bool()> probe) { onnx_probe() = std::move(probe); }

at::Tensor cross_entropy_for_onnx(const at::Tensor& self, const at::Tensor& target,
                                  const std::optional<at::Tensor>& weight, int64_t reduction,
                                  c10::SymInt ignore_index, double label_smoothing) {
  const bool narrow = target.scalar_type() == at::kInt || target.scalar_type() == at::kByte;
  return at::cross_entropy_loss_symint(self, narrow ? target.to(at::kLong) : target, weight, reduction,
                                       std::move(ignore_index), label_smoothing);
}

}  // namespace softkern
