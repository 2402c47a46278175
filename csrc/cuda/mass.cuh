// SPDX-License-Identifier: Apache-2.0
// The target mass that is spread over the classes of a row (common/mass.h).
#pragma once

#include "../common/mass.h"
#include "row.cuh"

namespace softkern::cuda {
namespace {

/// The part of a row's target mass that is spread over the classes.
template <class T>
struct SpreadMass {
  using A = Compute<T>;
  using L = Lane<A>;
  static constexpr bool kSpread = true, kUniform = false;
  Span<const T> t;  // t.at is null with class indices
  const T* weight;
  MassNumbers<A> numbers;
  int64_t classes;

  /// Loads the mass a of the V classes from c on. Returns false after the end of the row.
  template <int V, class Index>
  SK_INLINE bool load(Index c, A (&a)[V]) const {
    if (c >= static_cast<Index>(classes)) return false;
    if (t.at != nullptr) {
      t.load(c, a, A(0));
      SK_UNROLL
      for (int i = 0; i < V; ++i) a[i] = probability_mass<L>(numbers, a[i]);
    } else {
      SK_UNROLL
      for (int i = 0; i < V; ++i) a[i] = uniform_mass<L>(numbers);
    }
    if (weight != nullptr) {
      A w[V];
      Span<const T>{weight, 1, classes}.load(c, w, A(0));
      SK_UNROLL
      for (int i = 0; i < V; ++i) a[i] = weighted<L>(a[i], w[i]);
    }
    return true;
  }
};

/// The same mass for every class: label smoothing without class weights. Statistics have the number of
/// classes and the sum of m - x_c until the last sum is made (statistics()).
template <class T>
struct UniformMass {
  using A = Compute<T>;
  static constexpr bool kSpread = true, kUniform = true;
  A share;
  int64_t classes;  // 0 for ignored rows

  template <class Index>
  SK_INLINE bool has(Index c) const {
    return c < static_cast<Index>(classes);
  }
};

/// How the target mass of a row is spread.
enum class Spread {
  kNone,     // over no class but the hot one
  kUniform,  // over all classes alike, and the hot one
  kAny,
};

template <class T, Spread kSpread>
struct MassOf;
template <class T>
struct MassOf<T, Spread::kNone> {
  using type = NoMass;
};
template <class T>
struct MassOf<T, Spread::kUniform> {
  using type = UniformMass<T>;
};
template <class T>
struct MassOf<T, Spread::kAny> {
  using type = SpreadMass<T>;
};

}  // namespace
}  // namespace softkern::cuda
