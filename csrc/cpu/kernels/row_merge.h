// SPDX-License-Identifier: Apache-2.0
// Merges the numbers of parts of rows (common/parts.h), and computes the rows' results from them.
#pragma once

#include "../../common/parts.h"
#include "row_results.h"

namespace softkern::cpu {
namespace {

template <class T>
class RowMerge {
  using A = Compute<T>;
  using S = Simd<A>;
  using L = Lanes<A>;
  using Reg = typename S::Reg;
  // Levels of the tree: the binary digits of a number of parts.
  static constexpr int kMostWaiting = 64;

 public:
  explicit RowMerge(const RowMergeArgs& m) : m_(m), results_(m.rows) {}

  void run(const Range& range) {
    for (int64_t r = range.begin; r < range.end; r += S::kLanes) {
      const int count = static_cast<int>(r + S::kLanes <= range.end ? S::kLanes : range.end - r);
      Reg waiting[kMostWaiting][kPartNumbers];
      merge(r, count, waiting);
      put(r, count, waiting[0]);
      if (results_.wanted()) put_results(r, count, waiting[0]);
    }
  }

 private:
  /// Merges parts 2 k and 2 k + 1, then these pairs in the same way, and so on. What is left at the end of an
  /// odd number of parts or pairs is merged last. The result is waiting[0].
  SK_INLINE void merge(int64_t r, int count, Reg (*waiting)[kPartNumbers]) const {
    int size = 0;
    for (int64_t node = 0; node < m_.nodes; ++node) {
      const A* const at = static_cast<const A*>(m_.parts) + node * m_.node_step + r;
      for (int64_t i = 0; i < kPartNumbers; ++i) {
        const A* const number = at + i * m_.number_step;
        waiting[size][i] = count == S::kLanes ? S::load(number) : S::load(number, count, 0);
      }
      ++size;
      for (int64_t k = node; (k & 1) != 0; k >>= 1, --size)
        merge_part<L>(waiting[size - 2], waiting[size - 1]);
    }
    for (; size > 1; --size) merge_part<L>(waiting[size - 2], waiting[size - 1]);
  }
  SK_INLINE void put(int64_t r, int count, const Reg (&p)[kPartNumbers]) const {
    if (m_.rows.parts == nullptr) return;
    for (int64_t i = 0; i < kPartNumbers; ++i) {
      A* const at = static_cast<A*>(m_.rows.parts) + i * m_.rows.parts_step + r;
      if (count == S::kLanes) {
        S::store(at, p[i]);
      } else {
        S::store(at, p[i], count);
      }
    }
  }
  SK_INLINE void put_results(int64_t r, int count, const Reg (&p)[kPartNumbers]) const {
    A number[kPartNumbers][S::kLanes];
    for (int i = 0; i < kPartNumbers; ++i) S::store(number[i], p[i]);
    const A* const of_indices = static_cast<const A*>(m_.hot_z);
    for (int first = 0; first < count; first += kResultRows) {
      RowNumbers<A> of[kResultRows];
      int lane[kResultRows];
      int rows = 0;
      for (int l = first; l < count && l < first + kResultRows; ++l) {
        if (results_.is_ignored(r + l)) {
          results_.put_ignored(r + l);
          continue;
        }
        lane[rows] = l;
        of[rows].stats = make_stats<A>(number[kPartMax][l], number[kPartTies][l], number[kPartRest][l]);
        of[rows].mass.of[0] = number[kPartMass][l];
        of[rows].mass.of[1] = number[kPartMassBelow][l];
        of[rows++].below = number[kPartTermsBelow][l];
      }
      results_.put_rows(
          rows, of, [&](int k) { return r + lane[k]; },
          [&](int k) {
            return of_indices == nullptr ? number[kPartHotZ] + lane[k]
                                         : of_indices + (r + lane[k]) * m_.rows.per_row;
          });
    }
  }

  const RowMergeArgs& m_;
  const RowResults<T> results_;
};

template <class T>
Ran row_merge(const RowMergeArgs& a, Range range) {
  RowMerge<T>(a).run(range);
  return {SOFTKERN_ISA, "lanes"};
}
inline size_t no_scratch(const RowMergeArgs&, int64_t) { return 0; }

template <class T>
constexpr Kernel<RowMergeArgs> row_merge_kernel() {
  return {&row_merge<T>, &no_scratch};
}

}  // namespace
}  // namespace softkern::cpu
