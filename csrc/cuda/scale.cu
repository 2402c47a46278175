// SPDX-License-Identifier: Apache-2.0
// Scales the gradient that the forward of cross_entropy has stored, in place or to other memory.
#include "launch.cuh"
#include "targets.cuh"

namespace softkern::cuda {
namespace {

/// The factors of the gradient rows.
template <class T>
struct Factors {
  using A = Compute<T>;
  const void* upstream;
  ElementType type;
  bool by_row;
  const A* scale;
  IndexTarget target;

  SK_INLINE A unless_ignored(int64_t row) const {
    return static_cast<A>(element(upstream, type, by_row ? row : 0)) * *scale;
  }
  SK_INLINE A of(int64_t row) const {
    const A factor = unless_ignored(row);
    // Ignored rows are stored as zeros and must stay zeros: 0 * inf would make them NaN.
    return target.at != nullptr && target.of(row) == target.ignore_index ? A(0) : factor;
  }
};

template <int V, class T>
SK_INLINE void scale_chunk(const Span<T>& in, const Span<T>& out, int64_t c, Compute<T> factor) {
  Compute<T> v[V];
  in.load(c, v, Compute<T>(0));
  SK_UNROLL
  for (int i = 0; i < V; ++i) v[i] *= factor;
  out.store(c, v);
}

/// Threads take chunks in the order of a contiguous tensor: neighbouring threads have neighbouring classes
/// or, if inner > 1, neighbouring rows. `dense`: both tensors are dense (is_dense).
template <class T, int V>
__global__ void scale_kernel(Grid grid, Factors<T> factors, Rows input, Rows output, bool dense) {
  using A = Compute<T>;
  const int64_t first =
      static_cast<int64_t>(blockIdx.x) * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x);
  const int64_t step = static_cast<int64_t>(gridDim.x) * static_cast<int>(blockDim.x);
  const int64_t inner = grid.shape.inner, chunks = grid.shape.classes / V, items = grid.rows * chunks;
  // In place, elements with a factor of 1 need not be read.
  const bool in_place = input.data == output.data;
  if (!factors.by_row) {
    const A factor = factors.unless_ignored(0);
    if (factor == 1 && in_place) return;
    // If the factor is positive and finite, rows stored as zeros stay +0 without a look at their targets.
    if (dense && factor > 0 && is_finite(factor)) {
      const Span<T> from{static_cast<T*>(input.data), 1, items * V},
          to{static_cast<T*>(output.data), 1, items * V};
      for (int64_t item = first; item < items; item += step) scale_chunk<V>(from, to, item * V, factor);
      return;
    }
  }
  for (int64_t item = first; item < items; item += step) {
    const int64_t position = inner == 1 ? 0 : item % inner;
    const int64_t plane_and_chunk = inner == 1 ? item : item / inner;
    const int64_t plane = plane_and_chunk / chunks, c = plane_and_chunk % chunks * V;
    const int64_t row = plane * inner + position;
    const A factor = factors.of(row);
    if (factor == 1 && in_place) continue;
    scale_chunk<V>(span_of<T>(input, grid, row), span_of<T>(output, grid, row), c, factor);
  }
}

/// Whether the rows fill their memory without gaps.
inline bool is_dense(const Rows& rows, const Shape& shape, int64_t count) {
  const int64_t classes = shape.classes, inner = shape.inner;
  if (inner == 1) return rows.class_stride == 1 && (count == 1 || rows.outer_stride == classes);
  return rows.class_stride == inner && rows.inner_stride == 1 &&
         (count == inner || rows.outer_stride == inner * classes);
}

}  // namespace

template <class T>
Outcome scale(const ScaleArgs& args, const DeviceStream& stream) {
  constexpr int V = kVector<T>, kThreads = 256;
  // Enough blocks for any GPU. If there is nothing to do, launching one block per 256 chunks would take
  // longer than the kernel that computed the gradient.
  constexpr int64_t kEnoughBlocks = 2048;
  const bool vectors = args.shape.inner == 1 && args.shape.classes % V == 0 &&
                       takes_vectors(args.input, V, 1) && takes_vectors(args.output, V, 1);
  const bool dense =
      is_dense(args.input, args.shape, args.rows) && is_dense(args.output, args.shape, args.rows);
  const int64_t items = args.rows * (args.shape.classes / (vectors ? V : 1));
  const Dims dims{std::min((items + kThreads - 1) / kThreads, kEnoughBlocks), kThreads};
  const Grid grid{args.rows, args.shape, {TeamKind::kLanes, 1}};
  const Factors<T> factors{args.upstream,
                           args.upstream_type,
                           args.by_row,
                           static_cast<const Compute<T>*>(args.scale),
                           {args.target, args.target_type, args.ignore_index}};
  const char* error =
      vectors ? start(scale_kernel<T, V>, dims, stream, grid, factors, args.input, args.output, dense)
              : start(scale_kernel<T, 1>, dims, stream, grid, factors, args.input, args.output, dense);
  return {error, vectors ? "scaled by 16 bytes" : "scaled by elements"};
}

template Outcome scale<SOFTKERN_ELEMENT>(const ScaleArgs&, const DeviceStream&);

}  // namespace softkern::cuda
