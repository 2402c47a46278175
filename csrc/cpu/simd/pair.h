// SPDX-License-Identifier: Apache-2.0
// Two registers of an ISA that needs two for the lanes. Copied one by one: left to itself, GCC 12 copies a
// pair as an aggregate, through memory and general registers, which made rows of few classes twice as slow.
#pragma once

namespace softkern::cpu {
namespace {

/// Vectors are named by the struct that has them as `type`: as template arguments they would lose attributes.
template <class Vector>
struct Pair {
  typename Vector::type low, high;
  Pair() = default;
  SK_INLINE Pair(typename Vector::type l, typename Vector::type h) : low(l), high(h) {}
  SK_INLINE Pair(const Pair& p) : low(p.low), high(p.high) {}
  SK_INLINE Pair& operator=(const Pair& p) {
    low = p.low;
    high = p.high;
    return *this;
  }
};

}  // namespace
}  // namespace softkern::cpu
