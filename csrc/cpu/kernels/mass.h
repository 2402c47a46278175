// SPDX-License-Identifier: Apache-2.0
// mass = sum_c |t_c| for each row of class probabilities: a bound of the gradients of the row.
#pragma once

#include "../lanes/ways.h"

namespace softkern::cpu {
namespace {

template <class T>
Ran mass(const MassArgs& a, Range range) {
  using A = Compute<T>;
  using S = Simd<A>;
  using Reg = typename S::Reg;
  const auto size = [](const Reg& v)
                        __attribute__((always_inline)) { return S::max(v, S::sub(S::broadcast(0), v)); };
  A* const result = static_cast<A*>(a.mass);
  Range rest = range;
  const Ran ran = in_lanes<A>(
      a.shape, rest, is_strided(a.probabilities), false, [&](auto, const Range& all, auto&& tiles) {
        const LaneInput<T> input(a.probabilities, a.shape, all);
        const auto x = tiles.first();
        for_each_group<A>(a.shape, all, tiles.blocks(), [&](const LaneBlock* blocks, int count) {
          input.load(blocks, count, x);
          for (int b = 0; b < count; ++b) {
            Reg sum = S::broadcast(0);
            for (int64_t c = 0; c < a.shape.classes; ++c) sum = S::add(sum, size(x[b][c]));
            A lanes[S::kLanes];
            S::store(lanes, sum);
            for (int l = 0; l < blocks[b].count; ++l) result[blocks[b].first + l] = lanes[l];
          }
        });
      });
  if (rest.begin == rest.end) return ran;
  Arena arena(rest.scratch);
  const Operand<T> input(a.probabilities, a.shape, rest, arena);
  for_each_tile<T>(a.shape, rest, [&](int64_t first, int64_t count) {
    input.stage(first, count);
    for (int64_t r = first; r < first + count; ++r) {
      const T* const t = input.row(r, first);
      result[r] = sum_row<A, 1>(a.shape.classes, [&](auto* part, auto slot, auto at,
                                                     int64_t i) __attribute__((always_inline)) {
                    part->add(slot, size(at.load(t + i, 0)));
                  }).of[0];
    }
  });
  return ran;
}

template <class T>
size_t mass_scratch(const MassArgs& a, int64_t rows) {
  return scratch_of<Compute<T>>(
      a.shape, rows, is_strided(a.probabilities), false,
      [&](const Range& rest, Arena& arena) { Operand<T>(a.probabilities, a.shape, rest, arena); });
}

template <class T>
constexpr Kernel<MassArgs> mass_kernel() {
  if constexpr (__is_same(T, Half)) return {&mass<T>, &mass_scratch<T>};
  return {};
}

}  // namespace
}  // namespace softkern::cpu
