// SPDX-License-Identifier: Apache-2.0
// The members that every ISA file in this folder provides.
//
//   template <> struct Simd<float>   16 lanes      template <> struct Simd<double>   8 lanes
//
// The lane counts are those of the widest ISA on purpose: narrower ISAs use several registers. All
// reductions are defined over these lanes, so that every ISA adds the same numbers in the same order.
//
//   Number, Reg          the type of a lane; a register of kLanes lanes
//   kInStep              number of registers whose exponentials are computed in step (in_step.h): as many
//                        as the ISA has space for
//   broadcast(a)         a in all lanes, -0 included
//   load(p)              kLanes elements at p, in the compute type; p need not be aligned
//   load(p, n, fill)     elements 0..n-1, 0 < n < kLanes; fill in the other lanes
//   store(p, v)          rounded to nearest, ties to even; NaN stays NaN
//   store(p, v, n)       lanes 0..n-1
//   stream(p, v)         store, past the caches if the ISA can; p is aligned to the size of the stored vector
//   fence()              streamed vectors are written before later stores (in Simd<float>)
//   add, sub, mul, div   IEEE
//   fma(a, b, c)         a * b + c, rounded once
//   max(a, b), min(a, b) b where either is NaN, b where they are equal (what vmaxps does)
//   add_if_equal(s, v, a, b)      s + v in the lanes where a == b, s elsewhere, also where either is NaN
//   add_unless_equal(s, v, a, b)  s + v in the other lanes
//   if_equal(a, b, x, y)          x in the lanes where a == b, y elsewhere, also where either is NaN
//   if_less(a, b, x, y)           x in the lanes where a < b, y elsewhere
//   all_at_least(a, b)            whether a >= b in every lane: false if there is a NaN
//   any_equal(a, b)      whether a == b in any lane
//   mul_at_least(a, b, least)     a * b where a >= least or a is NaN; else +0; no product underflows there
//   scale(v, t, s)       v * 2^(t - s - kBias); t and s are integers plus the same number, kRounder, where an
//                        ulp is 1; 0 < t - s <= 2 kBias = 254 (2046 in double); rounded once; NaN kept
//   split(u, k)          f, and sets k, with u = 2^k f and sqrt(1/2) <= f < sqrt(2), for a positive normal u
//   load_columns(row, v) lane l of v[c] is row(l)[c], c < kPiece = 16 / sizeof(A), in the compute type
//   store_columns(row, v)         the opposite, row(0) first and row(kLanes - 1) last
//   kWidePiece           2 kPiece if load_columns and store_columns also take that many columns, else kPiece
//   reduce_add(v)        adds lane l + k/2 to lane l, for k = kLanes, kLanes/2, ..., 2
//   reduce_max(v)        the same tree
//
// Nothing past p + n is read or written: it may not be memory of the process.
// load and store take float, BFloat16 and Half in Simd<float>, double in Simd<double>.
#pragma once

#include "../scalar.h"

namespace softkern::cpu {
namespace {

template <class A>
struct Simd;

template <class T>
T any();

#define SK_RETURNS(Type, ...) \
  static_assert(__is_same(decltype(__VA_ARGS__), Type), #__VA_ARGS__ " does not return " #Type)

/// The members that move elements of T, a storage type of S.
template <class S, class T>
constexpr bool moves() {
  using A = typename S::Number;
  using Reg = typename S::Reg;
  using From = const T*;
  SK_RETURNS(Reg, S::load(any<From>()));
  SK_RETURNS(Reg, S::load(any<From>(), any<int>(), any<A>()));
  SK_RETURNS(void, S::store(any<T*>(), any<Reg>()));
  SK_RETURNS(void, S::store(any<T*>(), any<Reg>(), any<int>()));
  SK_RETURNS(void, S::stream(any<T*>(), any<Reg>()));
  SK_RETURNS(void, S::load_columns(any<From (*)(int)>(), any<Reg(&)[S::kPiece]>()));
  SK_RETURNS(void, S::load_columns(any<From (*)(int)>(), any<Reg(&)[S::kWidePiece]>()));
  SK_RETURNS(void, S::store_columns(any<T* (*)(int)>(), any<const Reg(&)[S::kPiece]>()));
  SK_RETURNS(void, S::store_columns(any<T* (*)(int)>(), any<const Reg(&)[S::kWidePiece]>()));
  return true;
}

/// Whether S has all of the members above, as they are called here.
template <class S, class A>
constexpr bool keeps_contract() {
  using Reg = typename S::Reg;
  static_assert(__is_same(typename S::Number, A));
  static_assert(S::kLanes * sizeof(A) == 64, "reductions are defined over 64 bytes of lanes");
  static_assert(sizeof(Reg) == 64, "one register's worth of lanes, no more");
  static_assert(S::kPiece * sizeof(A) == 16 &&
                (S::kWidePiece == S::kPiece || S::kWidePiece == 2 * S::kPiece));
  static_assert(4 % S::kInStep == 0, "four vectors are computed in groups of kInStep");
  static_assert(S::kBias == (sizeof(A) == sizeof(float) ? 127 : 1023));
  SK_RETURNS(Reg, S::broadcast(any<A>()));
  SK_RETURNS(Reg, S::add(any<Reg>(), any<Reg>()));
  SK_RETURNS(Reg, S::sub(any<Reg>(), any<Reg>()));
  SK_RETURNS(Reg, S::mul(any<Reg>(), any<Reg>()));
  SK_RETURNS(Reg, S::div(any<Reg>(), any<Reg>()));
  SK_RETURNS(Reg, S::fma(any<Reg>(), any<Reg>(), any<Reg>()));
  SK_RETURNS(Reg, S::max(any<Reg>(), any<Reg>()));
  SK_RETURNS(Reg, S::min(any<Reg>(), any<Reg>()));
  SK_RETURNS(Reg, S::add_if_equal(any<Reg>(), any<Reg>(), any<Reg>(), any<Reg>()));
  SK_RETURNS(Reg, S::add_unless_equal(any<Reg>(), any<Reg>(), any<Reg>(), any<Reg>()));
  SK_RETURNS(Reg, S::if_equal(any<Reg>(), any<Reg>(), any<Reg>(), any<Reg>()));
  SK_RETURNS(Reg, S::if_less(any<Reg>(), any<Reg>(), any<Reg>(), any<Reg>()));
  SK_RETURNS(bool, S::all_at_least(any<Reg>(), any<Reg>()));
  SK_RETURNS(bool, S::any_equal(any<Reg>(), any<Reg>()));
  SK_RETURNS(Reg, S::mul_at_least(any<Reg>(), any<Reg>(), any<Reg>()));
  SK_RETURNS(Reg, S::scale(any<Reg>(), any<Reg>(), any<Reg>()));
  SK_RETURNS(Reg, S::split(any<Reg>(), any<Reg&>()));
  SK_RETURNS(A, S::reduce_add(any<Reg>()));
  SK_RETURNS(A, S::reduce_max(any<Reg>()));
  if constexpr (sizeof(A) == sizeof(float)) {
    SK_RETURNS(void, S::fence());
    return moves<S, float>() && moves<S, BFloat16>() && moves<S, Half>();
  } else {
    return moves<S, double>();
  }
}
#undef SK_RETURNS

}  // namespace
}  // namespace softkern::cpu
