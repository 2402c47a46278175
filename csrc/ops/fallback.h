// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include "backend.h"

namespace softkern {

/// Passes on what ATen computed in place of a kernel, unless a backend was asked for by name: that one must
/// not be replaced silently. Called with the result, so that ATen's opinion on bad arguments comes first.
inline at::Tensor by_aten(at::Tensor result) {
  const std::string named = required();
  TORCH_CHECK(
      named.empty(), "backend '", named,
      "' was asked for and does not compute these arguments (device, layout, dtypes, transforms); where "
      "the choice is softkern's, torch does");
  return result;
}

}  // namespace softkern
