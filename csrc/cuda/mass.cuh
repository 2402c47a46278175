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
  static constexpr bool kSpread = true;
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

template <class T, bool kSpread>
struct MassOf {
  using type = SpreadMass<T>;
};
template <class T>
struct MassOf<T, false> {
  using type = NoMass;
};

}  // namespace
}  // namespace softkern::cuda
