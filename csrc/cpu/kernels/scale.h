// SPDX-License-Identifier: Apache-2.0
// dx_c = f dx_c, with a factor f for each row: the only computation that remains for cross_entropy in
// backward.
#pragma once

#include "drive.h"

namespace softkern::cpu {
namespace {

constexpr ForwardKind kScale{false, false};

// Adding +0 changes -0 alone: zeros stay +0 whatever the factor's sign, as they are in a row of its own.
template <class T>
Ran scale(const ScaleArgs& a, Range range) {
  using A = Compute<T>;
  using S = Simd<A>;
  const auto zero = S::broadcast(0);
  const A* factor = static_cast<const A*>(a.factor);
  return forward<T>(
      {a.shape, a.input, a.output, a.stream}, range, kScale,
      [&](auto, const auto& input, const auto& output, const LaneBlock* blocks, int count, const auto& x) {
        input.load(blocks, count, x);
        output.store(blocks, count, x, [&](int b, auto body) __attribute__((always_inline)) {
          A lanes[S::kLanes] = {};
          for (int l = 0; l < blocks[b].count; ++l) lanes[l] = factor[(blocks[b].first + l) * a.factor_step];
          const auto f = S::load(lanes);
          const auto* const xb = x[b];
          body([&](int64_t c) __attribute__((always_inline)) { return S::fma(xb[c], f, zero); });
        });
      },
      [](int64_t, const T*, A*, const T*) { return 0; },
      [&](int64_t r, const T* x, A*, T* y, int, bool stream) __attribute__((always_inline)) {
        const auto f = S::broadcast(factor[r * a.factor_step]);
        write_vectors<A>(y, a.shape.classes, stream, [&](auto at, int64_t i) __attribute__((always_inline)) {
          return S::fma(at.load(x + i, 0), f, zero);
        });
      });
}

template <class T>
size_t scale_scratch(const ScaleArgs& a, int64_t rows) {
  return forward_scratch<T>({a.shape, a.input, a.output, a.stream}, rows, kScale);
}

template <class T>
constexpr Kernel<ScaleArgs> scale_kernel() {
  return {&fenced<ScaleArgs, &scale<T>>, &scale_scratch<T>};
}

}  // namespace
}  // namespace softkern::cpu
