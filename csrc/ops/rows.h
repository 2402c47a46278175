// SPDX-License-Identifier: Apache-2.0
// Converts tensors to the rows that kernels walk, in the same way for every backend.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

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

/// One stride for all dims before `dim`, and one for all dims after it. Empty if a group of dims has no
/// single stride.
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
  if (x.numel() == 0) {  // nothing to walk, and a stride before a size of 0 is not a multiple of it
    rows.outer_stride = rows.inner_stride = 0;
    return rows;
  }
  if (!step(0, dim, &rows.outer_stride) || !step(dim + 1, x.dim(), &rows.inner_stride)) return std::nullopt;
  return rows;
}

inline bool is_walkable(const at::Tensor& x, int64_t dim) { return as_rows(x, dim, nullptr).has_value(); }

/// Rows that the kernels can walk: those of the tensor itself, or those of a contiguous copy. `keep` owns the
/// memory.
inline Rows readable_rows(const at::Tensor& x, int64_t dim, at::Tensor& keep) {
  // const_data_ptr() does not materialize a lazily cloned input.
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

/// Fresh contiguous memory for a result of the shape and dtype of x.
inline at::Tensor new_output(const at::Tensor& x) {
  return at::empty(x.sizes(), x.options().memory_format(at::MemoryFormat::Contiguous));
}

/// New memory for one or more numbers of another dtype, on x's device.
inline at::Tensor new_numbers(const at::Tensor& x, at::IntArrayRef sizes, at::ScalarType type) {
  return at::empty(sizes, x.options().dtype(type).memory_format(at::MemoryFormat::Contiguous));
}

}  // namespace softkern
