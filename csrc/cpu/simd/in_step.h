// SPDX-License-Identifier: Apache-2.0
// K registers of an ISA as one, so that the steps of the exponentials of several vectors alternate. Each
// exponential is a chain of fourteen operations that wait for each other. Chains that follow each other would
// fill the schedulers of the processor with operations that can't run yet.
#pragma once

#include "../../common/inline.h"

namespace softkern::cpu {
namespace {

template <class S, int K>
struct InStep {
  using Number = typename S::Number;
  using One = typename S::Reg;
  static constexpr int kBias = S::kBias;
  /// The registers are copied one by one, as in Pair.
  struct Reg {
    One of[K];
    Reg() = default;
    SK_INLINE Reg(const Reg& r) { set(r); }
    SK_INLINE Reg& operator=(const Reg& r) {
      set(r);
      return *this;
    }

   private:
    SK_INLINE void set(const Reg& r) {
      for (int k = 0; k < K; ++k) of[k] = r.of[k];
    }
  };

  static SK_INLINE Reg all(const One& v) {
    return make([&](int) __attribute__((always_inline)) { return v; });
  }
  static SK_INLINE Reg broadcast(Number a) { return all(S::broadcast(a)); }
  static SK_INLINE Reg sub(const Reg& a, const Reg& b) {
    return make([&](int k) __attribute__((always_inline)) { return S::sub(a.of[k], b.of[k]); });
  }
  static SK_INLINE Reg max(const Reg& a, const Reg& b) {
    return make([&](int k) __attribute__((always_inline)) { return S::max(a.of[k], b.of[k]); });
  }
  static SK_INLINE Reg min(const Reg& a, const Reg& b) {
    return make([&](int k) __attribute__((always_inline)) { return S::min(a.of[k], b.of[k]); });
  }
  static SK_INLINE Reg fma(const Reg& a, const Reg& b, const Reg& c) {
    return make([&](int k) __attribute__((always_inline)) { return S::fma(a.of[k], b.of[k], c.of[k]); });
  }
  static SK_INLINE Reg if_less(const Reg& a, const Reg& b, const Reg& x, const Reg& y) {
    return make(
        [&](int k) __attribute__((always_inline)) { return S::if_less(a.of[k], b.of[k], x.of[k], y.of[k]); });
  }
  static SK_INLINE Reg mul_at_least(const Reg& a, const Reg& b, const Reg& least) {
    return make(
        [&](int k) __attribute__((always_inline)) { return S::mul_at_least(a.of[k], b.of[k], least.of[k]); });
  }
  static SK_INLINE Reg scale(const Reg& v, const Reg& t, const Reg& s) {
    return make([&](int k) __attribute__((always_inline)) { return S::scale(v.of[k], t.of[k], s.of[k]); });
  }

 private:
  template <class Make>
  static SK_INLINE Reg make(Make value) {
    Reg r;
    SK_UNROLL
    for (int k = 0; k < K; ++k) r.of[k] = value(k);
    return r;
  }
};

}  // namespace
}  // namespace softkern::cpu
