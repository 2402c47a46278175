// SPDX-License-Identifier: Apache-2.0
// The element type that a program is compiled for, -DSOFTKERN_ELEMENT as the kernels, and numbers of it on
// the host.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../../csrc/cpu/scalar.h"

namespace softkern::cuda {
// Of which the kernels' functions are called by name.
struct Softmax;
struct LogSoftmax;
}  // namespace softkern::cuda

namespace softkern::tools {

using T = SOFTKERN_ELEMENT;
using A = Compute<T>;

constexpr ElementType kElement = std::is_same_v<T, float>      ? kFloat
                                 : std::is_same_v<T, double>   ? kDouble
                                 : std::is_same_v<T, BFloat16> ? kBFloat16
                                                               : kHalf;
constexpr int64_t kIgnored = -100;
constexpr const char* kElementName = kElement == kFloat      ? "float32"
                                     : kElement == kDouble   ? "float64"
                                     : kElement == kBFloat16 ? "bfloat16"
                                                             : "float16";

inline double number(T x) { return cpu::widen(x); }
inline T element(double x) { return cpu::Narrow<T>::from(static_cast<A>(x)); }

/// Number i of a sequence, between -1 and 1.
inline double chance(uint64_t i, uint64_t sequence) {
  uint64_t h = (i + 1) * 0x9e3779b97f4a7c15u ^ (sequence + 1) * 0xd1b54a32d192ed03u;
  h = (h ^ h >> 30) * 0xbf58476d1ce4e5b9u;
  h = (h ^ h >> 27) * 0x94d049bb133111ebu;
  return static_cast<double>((h ^ h >> 31) >> 11) * 0x1p-52 - 1;
}

}  // namespace softkern::tools
