// SPDX-License-Identifier: Apache-2.0
// Scales the gradient that the forward of cross_entropy has stored, in place or to other memory.
#include "launch.cuh"
#include "targets.cuh"

namespace softkern::cuda {
namespace {

constexpr int kThreads = 256;
// Enough blocks for any GPU. If there is nothing to do, launching one block for each part of the tensor would
// take longer than the kernel that computed the gradient.
constexpr int64_t kEnoughBlocks = 2048;
// A thread loads so many words of 16 bytes, or elements, before it stores the first one.
constexpr int kWordsAtOnce = 4, kElementsAtOnce = 8;

/// The registers of as many threads as have enough bytes on the way together.
template <class T>
struct ScaleLimits : OneTensor<T> {
  static constexpr int kMostWithElements = 1024;
};

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
  /// Whether ignored rows, which are stored as zeros, stay +0 when they are multiplied by the factor.
  SK_INLINE bool spares_zeros(A factor) const {
    return target.at == nullptr || (factor > 0 && is_finite(factor));
  }
  SK_INLINE A of(int64_t row) const {
    const A factor = unless_ignored(row);
    if (spares_zeros(factor)) return factor;
    // 0 * inf would make the zeros NaN.
    return target.of(row) == target.ignore_index ? A(0) : factor;
  }
};

/// Contiguous elements that are moved from one place to another, or to the same. The places have the same
/// alignment: words of 16 bytes lie between fewer than a word of elements on each side.
template <class T, class Index>
struct Line {
  static constexpr int V = kVector<T>;
  const T* in;
  T* out;
  Index words;
  int before, after;  // elements

  SK_INLINE Line(const T* from, T* to, Index count) : in(from), out(to) {
    constexpr int kBytes = V * sizeof(T);
    const int lead = static_cast<int>(reinterpret_cast<uintptr_t>(to) % kBytes) / static_cast<int>(sizeof(T));
    before = (V - lead) % V;
    if (before > count) before = static_cast<int>(count);
    words = (count - before) / V;
    after = static_cast<int>((count - before) % V);
  }
  SK_INLINE int elements() const { return before + after; }
  /// The place of an element outside the words.
  SK_INLINE Index of_element(Index i) const { return i < before ? i : i + words * V; }
  SK_INLINE Index of_word(Index w) const { return before + w * V; }

  SK_INLINE void scale_element(Index at, Compute<T> factor) const {
    in_global_memory(out)[at] = narrow<T>(widen(in_global_memory(in)[at]) * factor);
  }
  SK_INLINE Words load(Index w) const {
    return *in_global_memory(reinterpret_cast<const Words*>(in + of_word(w)));
  }
  SK_INLINE void store(Index w, const Compute<T> (&v)[V]) const {
    store_words(out + of_word(w), pack<T>(v).of);
  }
  SK_INLINE void store_scaled(Index w, const Words& word, Compute<T> factor) const {
    Compute<T> v[V];
    unpack<T>(word, v);
    SK_UNROLL
    for (int i = 0; i < V; ++i) v[i] *= factor;
    store(w, v);
  }

  /// Calls f(w, word) for the words of thread `first` of `threads`, in order.
  template <class F>
  SK_INLINE void each_word(Index first, Index threads, F f) const {
    for (Index w = first; w < words; w += kWordsAtOnce * threads) {
      Words loaded[kWordsAtOnce];
      SK_UNROLL
      for (int j = 0; j < kWordsAtOnce; ++j) {
        if (w + j * threads < words) loaded[j] = load(w + j * threads);
      }
      SK_UNROLL
      for (int j = 0; j < kWordsAtOnce; ++j) {
        if (w + j * threads < words) f(w + j * threads, loaded[j]);
      }
    }
  }
  SK_INLINE void scale(Index first, Index threads, Compute<T> factor) const {
    if (first < elements()) scale_element(of_element(first), factor);
    each_word(first, threads, [&](Index w, const Words& word) { store_scaled(w, word, factor); });
  }
};

/// A row and a class of it; or how many rows and classes further another one is.
struct Place {
  int64_t row, c;

  SK_INLINE void advance(const Place& by, int64_t classes) {
    row += by.row;
    c += by.c;
    if (c < classes) return;
    c -= classes;
    ++row;
  }
};
SK_INLINE Place place_of(int64_t element, int64_t classes) { return {element / classes, element % classes}; }

/// Both tensors are packed, one row after the other, so that a word may belong to several rows. `step`: from
/// a thread's word to its next.
template <class T>
SK_INLINE void scale_packed(const Line<T, int64_t>& line, int64_t first, int64_t threads, int64_t classes,
                            const Place& step, const Factors<T>& factors, bool in_place) {
  constexpr int V = kVector<T>;
  if (first < line.elements()) {
    const int64_t at = line.of_element(first);
    line.scale_element(at, factors.of(at / classes));
  }
  if (first >= line.words) return;
  Place place = place_of(line.of_word(first), classes);
  line.each_word(first, threads, [&](int64_t w, const Words& word) {
    Compute<T> factor = factors.of(place.row);
    if (place.c + V <= classes) {
      // In place, there is nothing to do for a factor of 1.
      if (factor != 1 || !in_place) line.store_scaled(w, word, factor);
    } else {
      Compute<T> v[V];
      unpack<T>(word, v);
      int begin = 0;
      int64_t end = classes - place.c;
      for (int64_t row = place.row;; factor = factors.of(++row), end += classes) {
        SK_UNROLL
        for (int i = 0; i < V; ++i) {
          if (i >= begin && i < end) v[i] *= factor;
        }
        if (end >= V) break;
        begin = static_cast<int>(end);
      }
      line.store(w, v);
    }
    place.advance(step, classes);
  });
}

/// Elements at a stride.
template <class T>
SK_INLINE void scale_strided(const T* in, int64_t in_stride, T* out, int64_t out_stride, int count,
                             Compute<T> factor) {
  for (; count > 0; count -= kElementsAtOnce) {
    // Or their multiples would be kept in registers.
    forget(in_stride);
    forget(out_stride);
    T v[kElementsAtOnce];
    SK_UNROLL
    for (int j = 0; j < kElementsAtOnce; ++j, in += in_stride) {
      if (j < count) v[j] = *in_global_memory(in);
    }
    SK_UNROLL
    for (int j = 0; j < kElementsAtOnce; ++j, out += out_stride) {
      if (j < count) *in_global_memory(out) = narrow<T>(widen(v[j]) * factor);
    }
  }
}

/// How threads share the elements.
enum class Walk : int {
  kPacked,    // words of both tensors, which are packed row by row
  kWords,     // a warp has a piece of a row, in words
  kElements,  // a warp has a piece of a row, or of 32 neighbouring rows: one for each lane
};

struct Pieces {
  int64_t of_row;  // number of pieces
  int classes;     // of each piece
  bool columns;    // of 32 rows
  bool any_order;  // both tensors fill the same memory, in whatever order
};

/// Divides for each piece, not for each element.
template <class T, Walk kWalk>
SK_INLINE void scale_pieces(const Grid& grid, const Pieces& pieces, const Factors<T>& factors,
                            const Rows& input, const Rows& output) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, threads = pieces.columns ? 1 : kWarp;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
  const int64_t groups = pieces.columns ? (grid.rows + kWarp - 1) / kWarp : grid.rows;
  int64_t piece =
      static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + static_cast<int>(threadIdx.x) / kWarp;
  for (; piece < groups * pieces.of_row; piece += warps) {
    const int64_t group = piece / pieces.of_row;
    int64_t begin = (piece - group * pieces.of_row) * pieces.classes;
    const int64_t row = pieces.columns ? group * kWarp + lane : group;
    const int64_t left = grid.shape.classes - begin;
    int count = left < pieces.classes ? static_cast<int>(left) : pieces.classes;
    if (row >= grid.rows || count <= 0) continue;
    const Compute<T> factor = factors.of(row);
    // In place, there is nothing to do for a factor of 1.
    if (factor == 1 && input.data == output.data) continue;
    if (kWalk == Walk::kElements && !pieces.columns) {
      begin += lane;
      count = (count - lane + kWarp - 1) / kWarp;
    }
    const T* in = row_of<const T>(input, row, grid.shape.inner) + begin * input.class_stride;
    T* out = row_of<T>(output, row, grid.shape.inner) + begin * output.class_stride;
    if constexpr (kWalk == Walk::kWords) {
      Line<T, int>(in, out, count).scale(lane, kWarp, factor);
    } else {
      scale_strided<T>(in, threads * input.class_stride, out, threads * output.class_stride, count, factor);
    }
  }
}

template <class T, Walk kWalk>
__global__ void SK_BOUNDS(ScaleLimits<T>, Access::kElements, 0)
    scale_kernel(Grid grid, Pieces pieces, Place step, Factors<T> factors, Rows input, Rows output) {
  follow_previous_kernel();
  const int64_t first =
      static_cast<int64_t>(blockIdx.x) * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x);
  const int64_t threads = static_cast<int64_t>(gridDim.x) * static_cast<int>(blockDim.x);
  const bool in_place = input.data == output.data;
  const int64_t count = grid.rows * grid.shape.classes;
  if (!factors.by_row) {
    const Compute<T> factor = factors.unless_ignored(0);
    if (factor == 1 && in_place) return;
    if (kWalk != Walk::kWords && pieces.any_order && factors.spares_zeros(factor)) {
      Line<T, int64_t>(static_cast<const T*>(input.data), static_cast<T*>(output.data), count)
          .scale(first, threads, factor);
      return;
    }
  }
  if constexpr (kWalk == Walk::kPacked) {
    scale_packed<T>({static_cast<const T*>(input.data), static_cast<T*>(output.data), count}, first, threads,
                    grid.shape.classes, step, factors, in_place);
  } else {
    scale_pieces<T, kWalk>(grid, pieces, factors, input, output);
  }
}

/// The dims of rows, in elements; those of size 1 have no stride.
struct Dim {
  int64_t size, stride;
};
struct Strides {
  Dim of[3];  // outer, inner, classes
  Strides(const Rows& rows, const Shape& shape, int64_t count)
      : of{{count / shape.inner, rows.outer_stride},
           {shape.inner, rows.inner_stride},
           {shape.classes, rows.class_stride}} {
    for (Dim& dim : of) {
      if (dim.size == 1) dim.stride = 0;
    }
  }
  bool operator==(const Strides& other) const {
    return std::equal(of, of + 3, other.of, [](const Dim& a, const Dim& b) { return a.stride == b.stride; });
  }
  /// Whether the rows fill their memory without gaps.
  bool are_packed() const {
    Dim sorted[3] = {of[0], of[1], of[2]};
    std::sort(sorted, sorted + 3, [](const Dim& a, const Dim& b) { return a.stride < b.stride; });
    int64_t filled = 1;
    for (const Dim& dim : sorted) {
      if (dim.size > 1 && dim.stride != filled) return false;
      filled *= dim.size;
    }
    return true;
  }
  /// Whether rows are whole, one after the other.
  bool are_row_by_row() const {
    return are_packed() && of[2].stride <= 1 && (of[1].size == 1 || of[1].stride == of[2].size);
  }
  /// The distance of neighbouring rows.
  int64_t of_rows() const { return of[1].size > 1 ? of[1].stride : of[0].stride; }
};

template <class T, Walk kWalk>
const char* launch(const ScaleArgs& args, const DeviceStream& stream, bool any_order, bool columns = false) {
  constexpr int V = kVector<T>, kWarps = kThreads / kWarp;
  // Long enough for the division that finds a piece, short enough for all warps to have some.
  const int64_t threads = columns ? 1 : kWarp;
  const int64_t most = 2 * threads * (kWalk == Walk::kWords ? kWordsAtOnce * V : kElementsAtOnce);
  const int64_t classes = args.shape.classes, words = ceil_div(args.rows * classes, V);
  const int64_t of_row = ceil_div(classes, most), groups = columns ? ceil_div(args.rows, kWarp) : args.rows;
  const int64_t each = ceil_div(ceil_div(classes, of_row), V) * V;
  const Pieces pieces{of_row, static_cast<int>(each), columns, any_order};
  int64_t blocks = ceil_div(groups * of_row, kWarps);
  if (any_order) blocks = std::max(blocks, ceil_div(words, kThreads));
  const Dims dims{std::min(blocks, kEnoughBlocks), kThreads};
  const int64_t step = dims.blocks * kThreads * V;
  return start(scale_kernel<T, kWalk>, dims, stream, Grid{args.rows, args.shape, {TeamKind::kLanes, 1}},
               pieces, Place{step / classes, step % classes},
               Factors<T>{args.upstream,
                          args.upstream_type,
                          args.by_row,
                          static_cast<const Compute<T>*>(args.scale),
                          {args.target, args.target_type, args.ignore_index}},
               args.input, args.output);
}

}  // namespace

template <class T>
Outcome scale(const ScaleArgs& args, const DeviceStream& stream) {
  const Strides in(args.input, args.shape, args.rows), out(args.output, args.shape, args.rows);
  const auto lead = [](const Rows& rows) { return reinterpret_cast<uintptr_t>(rows.data) % kVectorBytes; };
  const bool words = in == out && lead(args.input) == lead(args.output), any_order = words && in.are_packed();
  if (any_order && in.are_row_by_row()) {
    return {launch<T, Walk::kPacked>(args, stream, true), "packed, scaled"};
  }
  if (words && out.of[2].stride <= 1) {
    return {launch<T, Walk::kWords>(args, stream, false), "words, scaled"};
  }
  const bool columns = out.of[2].stride > out.of_rows() && args.rows > 1;
  return {launch<T, Walk::kElements>(args, stream, any_order, columns),
          columns ? "columns, scaled" : "elements, scaled"};
}

template Outcome scale<SOFTKERN_ELEMENT>(const ScaleArgs&, const DeviceStream&);

}  // namespace softkern::cuda
