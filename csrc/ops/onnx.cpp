// SPDX-License-Identifier: Apache-2.0
#include "onnx.h"

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

}  // namespace softkern
