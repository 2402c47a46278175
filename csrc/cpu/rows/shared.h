// SPDX-License-Identifier: Apache-2.0
// A row that threads share, because there are fewer rows than threads. Each thread computes whole blocks. The
// sums of the blocks are stored separately, and are added up when all are there, in the order of one thread.
#pragma once

#include "operand.h"
#include "stats.h"

namespace softkern::cpu {
namespace {

/// The data that a kernel keeps of a shared row in addition to its range and a sum. masses: two sums of
/// masses. terms: its terms, in the compute type.
struct SharedParts {
  bool masses, terms;
};

template <class A>
class SharedRow {
  static constexpr int64_t kBlock = kBlockBytes / sizeof(A);
  template <int K>
  struct Store {
    Accumulators<A>* to;
    SK_INLINE void operator()(const Accumulators<A>* block) {
      for (int k = 0; k < K; ++k) to++->set(block[k]);
    }
  };

 public:
  SharedRow(const Chunk& chunk, int64_t classes, SharedParts parts)
      : SharedRow(Arena(chunk.shared), chunk, classes, parts) {}
  /// Kernel::shared_bytes.
  static size_t bytes(int64_t classes, int chunks, SharedParts parts) {
    const Chunk chunk{0, 0, classes, 0, chunks, nullptr};
    return SharedRow(Arena(), chunk, classes, parts).bytes_;
  }

  int64_t begin() const { return chunk_.begin; }
  int64_t end() const { return chunk_.end; }
  int64_t size() const { return chunk_.end - chunk_.begin; }
  bool first() const { return chunk_.index == 0; }
  bool holds(int64_t c) const { return c >= chunk_.begin && c < chunk_.end; }
  /// Memory of the whole row, not of a chunk: for its terms, and for the logit of the hot class.
  A* scratch() const { return scratch_; }
  A& hot_x() const { return *hot_x_; }

  // The results of this chunk, for the others.
  void set_range(const RowRange<A>& range) const { ranges_[chunk_.index] = range; }
  template <class T>
  void find_range(const T* x) const {
    set_range(row_range<A>(x + begin(), size()));
  }
  template <class T>
  void sum_terms(const T* x, A* e) const {
    Following<T> nothing(nullptr, nullptr);
    ties_[chunk_.index] = sum_exp_within<A>(range(), x + begin(), e == nullptr ? e : e + begin(), size(),
                                            nothing, store_sums());
  }
  /// These store the sums of the blocks of this chunk.
  Store<1> store_sums() const { return {sums_ + chunk_.begin / kBlock}; }
  Store<2> store_mass() const { return {mass_ + 2 * (chunk_.begin / kBlock)}; }

  // The results of all chunks.
  RowRange<A> range() const {
    RowRange<A> all = ranges_[0];
    for (int i = 1; i < chunk_.count; ++i) {
      if (ranges_[i].least < all.least) all.least = ranges_[i].least;
      if (ranges_[i].most > all.most) all.most = ranges_[i].most;
    }
    return all;
  }
  A stored_sum() const { return stored<1>(sums_).of[0]; }
  Sums<A, 2> stored_mass() const { return stored<2>(mass_); }
  RowStats<A> stats() const {
    double ties = 0;
    for (int i = 0; i < chunk_.count; ++i) ties += static_cast<double>(ties_[i]);
    return make_stats<A>(range().most, static_cast<A>(ties), stored_sum());
  }

 private:
  SharedRow(Arena arena, const Chunk& chunk, int64_t classes, SharedParts parts)
      : chunk_(chunk), blocks_((classes + kBlock - 1) / kBlock) {
    sums_ = arena.take<Accumulators<A>>(blocks_);
    ranges_ = arena.take<RowRange<A>>(chunk.count);
    ties_ = arena.take<A>(chunk.count);
    hot_x_ = arena.take<A>(1);
    if (parts.masses) mass_ = arena.take<Accumulators<A>>(2 * blocks_);
    if (parts.terms) scratch_ = arena.take<A>(row_pitch(classes));
    bytes_ = arena.bytes();
  }

  template <int K>
  Sums<A, K> stored(const Accumulators<A>* block) const {
    BlockSums<A, K> all;
    for (int64_t b = 0; b < blocks_; ++b, block += K) all.add(block);
    return all.sums();
  }

  const Chunk& chunk_;
  int64_t blocks_;
  size_t bytes_;
  Accumulators<A>*sums_, *mass_ = nullptr;
  RowRange<A>* ranges_;
  A *ties_, *hot_x_, *scratch_ = nullptr;
};

}  // namespace
}  // namespace softkern::cpu
