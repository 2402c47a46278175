// SPDX-License-Identifier: Apache-2.0
// log(1 + q) for q >= 0, at most 1 ulp, small q included; NaN kept:
//   u + c = 1 + q exactly,  u = 2^k (1 + f),  s = f / (2 + f)
//   log(1 + q) = k ln 2 + log(1 + f) + c/u
//   log(1 + f) = f - (f^2/2 - s (f^2/2 + R(s^2)))
// The constants and their origin are in log_constants.h. S is the trait that computes, as in exp.h.
#pragma once

#include "inline.h"
#include "log_constants.h"

namespace softkern {
namespace {

template <class S>
SK_INLINE typename S::Reg log_one_plus(const typename S::Reg& q) {
  using A = typename S::Number;
  using K = LogConstants<A>;
  const auto one = S::broadcast(1);
  const auto u = S::add(one, q);
  const auto of_q = S::sub(u, one);  // the part of q that is in u; c is the rest of q (Knuth's two-sum)
  const auto c = S::add(S::sub(one, S::sub(u, of_q)), S::sub(q, of_q));

  typename S::Reg k;
  const auto f = S::sub(S::split(u, k), one);
  const auto s = S::div(f, S::add(S::broadcast(2), f));
  const auto z = S::mul(s, s);
  auto r = S::broadcast(K::c(K::kDegree));
  SK_UNROLL
  for (int i = K::kDegree - 1; i >= 0; --i) r = S::fma(r, z, S::broadcast(K::c(i)));
  const auto half = S::mul(S::mul(S::broadcast(A(0.5)), f), f);
  const auto low = S::fma(k, S::broadcast(K::kLn2Low), S::div(c, u));
  const auto rest = S::sub(half, S::fma(s, S::fma(z, r, half), low));
  return S::fma(k, S::broadcast(K::kLn2High), S::sub(f, rest));
}

}  // namespace
}  // namespace softkern
