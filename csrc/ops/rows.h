// SPDX-License-Identifier: Apache-2.0
// From tensors to the rows that kernels walk, the same for every backend.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "../common/elements.h"

namespace softkern {

inline ElementType element_type(const at::Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat:
      return kFloat;
    case at::kDouble:
      return kDouble;
    case at::kBFloat16:
      return kBFloat16;
    case at::kHalf:
      return kHalf;
    default:
      TORCH_CHECK(false, "softkern: expected a float32, float64, bfloat16 or float16 tensor, got ",
                  x.scalar_type());
  }
}

inline at::ScalarType compute_type(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

/// Strides of the dims before and after `dim`, if each group walks memory in equal steps.
inline std::optional<Rows> as_rows(const at::Tensor& x, int64_t dim, void* data) {
  const auto step = [&](int64_t from, int64_t to, int64_t* stride) {
    int64_t expected = -1;
    *stride = 0;
    for (int64_t i = to - 1; i >= from; --i) {
      if (x.size(i) == 1) continue;
      if (expected == -1) {
        *stride = x.stride(i);
      } else if (x.stride(i) != expected) {
        return false;
      }
      expected = x.stride(i) * x.size(i);
    }
    return true;
  };
  Rows rows;
  rows.data = data;
  rows.class_stride = x.size(dim) == 1 ? 1 : x.stride(dim);
  if (x.numel() == 0) {  // no steps to compare: the stride in front of a size of 0 is none of its multiples
    rows.outer_stride = rows.inner_stride = 0;
    return rows;
  }
  if (!step(0, dim, &rows.outer_stride) || !step(dim + 1, x.dim(), &rows.inner_stride)) return std::nullopt;
  return rows;
}

inline bool is_walkable(const at::Tensor& x, int64_t dim) { return as_rows(x, dim, nullptr).has_value(); }

/// A tensor whose rows the kernels can walk: the tensor itself, or a copy of it that `keep` holds.
inline Rows readable_rows(const at::Tensor& x, int64_t dim, at::Tensor& keep) {
  // const_data_ptr: a lazily cloned input stays one.
  const auto rows = [&] { return as_rows(keep, dim, const_cast<void*>(keep.const_data_ptr())); };
  keep = x;
  if (const auto found = rows()) return *found;
  keep = x.contiguous();
  return *rows();
}

struct Layout {
  Shape shape;
  int64_t rows;
};

inline Layout layout_of(const at::Tensor& x, int64_t dim) {
  int64_t inner = 1;
  for (int64_t i = dim + 1; i < x.dim(); ++i) inner *= x.size(i);
  const int64_t classes = x.size(dim);
  return {{classes, inner}, classes == 0 ? 0 : x.numel() / classes};
}

}  // namespace softkern
