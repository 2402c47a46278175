// SPDX-License-Identifier: Apache-2.0
// Merges the numbers of parts of rows (common/parts.h), and computes the rows' results from them. A thread
// has a row: the numbers of neighbouring rows are neighbours in memory.
#include "../common/parts.h"
#include "launch.cuh"
#include "row_results.cuh"

namespace softkern::cuda {
namespace {

// Small blocks: a few thousand rows should occupy every multiprocessor.
constexpr int kThreads = 64;
// Of a block, unless the launch asks for more.
constexpr size_t kMostShared = 48 << 10;

/// The registers of as many threads as a multiprocessor has room for anyway.
template <class T>
struct MergeLimits : OneTensor<T> {
  static constexpr int kMostWithElements = sizeof(T) == 8 ? 512 : 768;
};

template <class A>
struct Merge {
  const A* parts;
  int64_t number_step, node_step, nodes;
  PartNumbers merged;

  SK_INLINE void load(int64_t node, int64_t row, A (&p)[kPartNumbers]) const {
    const A* const at = in_global_memory(parts) + node * node_step + row;
    SK_UNROLL
    for (int i = 0; i < kPartNumbers; ++i) p[i] = at[i * number_step];
  }
  SK_INLINE void store(int64_t row, const A (&p)[kPartNumbers]) const {
    if (merged.at == nullptr) return;
    SK_UNROLL
    for (int i = 0; i < kPartNumbers; ++i) static_cast<A*>(merged.at)[i * merged.step + row] = p[i];
  }
};

/// The numbers of a thread's parts that wait for their neighbours in the tree, in shared memory. At most as
/// many wait as the number of the last part has binary digits.
template <class A>
class Waiting {
 public:
  SK_INLINE Waiting() : top_(reinterpret_cast<A*>(shared_memory()) + static_cast<int>(threadIdx.x)) {}
  SK_INLINE bool any() const { return size_ > 0; }
  SK_INLINE void push(const A (&p)[kPartNumbers]) {
    SK_UNROLL
    for (int i = 0; i < kPartNumbers; ++i) top_[i * kThreads] = p[i];
    top_ += kPartNumbers * kThreads;
    ++size_;
  }
  SK_INLINE void pop(A (&p)[kPartNumbers]) {
    top_ -= kPartNumbers * kThreads;
    --size_;
    SK_UNROLL
    for (int i = 0; i < kPartNumbers; ++i) p[i] = top_[i * kThreads];
  }

 private:
  A* top_;
  int size_ = 0;
};

size_t shared_bytes(int64_t nodes, size_t number) {
  size_t levels = 0;
  for (int64_t k = nodes - 1; k > 0; k >>= 1) ++levels;
  return levels * kPartNumbers * kThreads * number;
}

/// Merges parts 2 k and 2 k + 1, then these pairs in the same way, and so on. What is left at the end of an
/// odd number of parts or pairs is merged last. As on the CPU (cpu/kernels/row_merge.h).
template <class A>
SK_INLINE void merge_row(const Merge<A>& merge, int64_t row, A (&all)[kPartNumbers]) {
  Waiting<A> waiting;
  A next[kPartNumbers];
  merge.load(0, row, next);
  for (int64_t node = 0; node < merge.nodes; ++node) {
    SK_UNROLL
    for (int i = 0; i < kPartNumbers; ++i) all[i] = next[i];
    const bool last = node + 1 == merge.nodes;
    if (!last) merge.load(node + 1, row, next);  // arrives while this one is merged
    for (int64_t k = node; last ? waiting.any() : (k & 1) != 0; k >>= 1) {
      A before[kPartNumbers];
      waiting.pop(before);
      merge_part<Lane<A>>(all, before);
    }
    if (!last) waiting.push(all);
  }
}

template <class T>
__global__ void SK_BOUNDS(MergeLimits<T>, Access::kElements, 0)
    row_merge_kernel(Grid grid, RowLossCall<T> call, Merge<Compute<T>> merge) {
  using A = Compute<T>;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (row >= grid.rows) return;
  A p[kPartNumbers];
  merge_row(merge, row, p);
  merge.store(row, p);
  const auto target =
      target_of<T, Form::kSpread, int64_t>(grid, call, row, [&](int64_t) { return p[kPartHotZ]; });
  Whole<A> w;
  w.s.m = p[kPartMax], w.s.ties = p[kPartTies], w.s.rest = p[kPartRest];
  w.s.terms_below = p[kPartTermsBelow], w.s.mass = p[kPartMass];
  for (int64_t i = row * call.per_row; i < (row + 1) * call.per_row; ++i) {
    call.check(call.target.of(i));
    w.hot.mass += call.hot_mass_at(i);
  }
  w.s.below = with_indices(call, row, w.s.m, p[kPartMassBelow]);
  w.find();
  write_results<T, Form::kSpread>(Alone<A>(), call, target, w, row, -1);
}

}  // namespace

template <class T>
Outcome row_merge(const RowMergeArgs& args, const DeviceStream& stream) {
  using A = Compute<T>;
  const Grid grid{args.rows.rows, args.rows.shape, {}};
  const Merge<A> merge{static_cast<const A*>(args.parts), args.number_step, args.node_step, args.nodes,
                       args.merged};
  const size_t shared = shared_bytes(args.nodes, sizeof(A));
  if (shared > kMostShared) return {"too many parts of a row", ""};
  const Dims dims{(args.rows.rows + kThreads - 1) / kThreads, kThreads, 1, shared};
  return {start(row_merge_kernel<T>, dims, stream, grid, call_of<T>(args.rows), merge), "parts of a row"};
}

template Outcome row_merge<SOFTKERN_ELEMENT>(const RowMergeArgs&, const DeviceStream&);

}  // namespace softkern::cuda
