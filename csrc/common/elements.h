// SPDX-License-Identifier: Apache-2.0
// The element types of tensors, and the layout of their rows in memory: the same for every backend.
#pragma once

#include <cstdint>

namespace softkern {

// Storage formats without arithmetic: kernels convert them to float when they load, and back when they store.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

enum ElementType : int { kFloat, kDouble, kBFloat16, kHalf, kElementTypes };

/// The compute type of an element type.
template <class T>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class T>
struct ComputeOf<const T> : ComputeOf<T> {};
template <class T>
using Compute = typename ComputeOf<T>::type;

/// A tensor seen as rows: class c of row r = (o, i), with o = r / inner and i = r % inner, lies at
/// data + o * outer_stride + i * inner_stride + c * class_stride (strides in elements).
struct Rows {
  void* data = nullptr;
  int64_t outer_stride = 0;
  int64_t inner_stride = 0;
  int64_t class_stride = 1;
};

struct Shape {
  int64_t classes;
  int64_t inner;
};

}  // namespace softkern
