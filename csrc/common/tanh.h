// SPDX-License-Identifier: Apache-2.0
// tanh(u). S is the trait that computes, as in exp.h.
#pragma once

#include "exp.h"
#include "inline.h"
#include "tanh_constants.h"

namespace softkern {
namespace {

/// tanh(u) for |u| < kSmall: u + u^3 P(u^2), which keeps the digits of u.
template <class S>
SK_INLINE typename S::Reg tanh_small(const typename S::Reg& u) {
  using K = TanhConstants<typename S::Number>;
  const auto square = S::mul(u, u);
  auto p = S::broadcast(K::c(K::kDegree));
  SK_UNROLL
  for (int k = K::kDegree - 1; k >= 0; --k) p = S::fma(p, square, S::broadcast(K::c(k)));
  return S::fma(S::mul(u, square), p, u);
}

/// tanh(u): for larger |u|, sign(u) (1 - 2 / (exp(2 |u|) + 1)); +-1 for +-inf, NaN kept.
template <class S>
SK_INLINE typename S::Reg tanh(const typename S::Reg& u) {
  using K = TanhConstants<typename S::Number>;
  const auto zero = S::broadcast(0), one = S::broadcast(1), two = S::broadcast(2);
  const auto size = S::max(S::sub(zero, u), u);
  // The argument is the second operand of min, which min returns for a NaN.
  const auto held = S::min(S::broadcast(K::kMost), size);
  const auto large = S::sub(one, S::div(two, S::add(exp_normal<S>(S::add(held, held)), one)));
  const auto signed_large = S::if_less(u, zero, S::sub(zero, large), large);
  return S::if_less(size, S::broadcast(K::kSmall), tanh_small<S>(u), signed_large);
}

}  // namespace
}  // namespace softkern
