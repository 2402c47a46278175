// SPDX-License-Identifier: Apache-2.0
// Two registers, for an ISA that needs two for the lanes. They are copied one by one: GCC 12 would copy the
// pair as an aggregate, through memory and general registers, which made rows of few classes twice as slow.
#pragma once

namespace softkern::cpu {
namespace {

/// `Vector` is a struct that has the vector as its member `type`: as a template argument, a vector would lose
/// its attributes.
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
