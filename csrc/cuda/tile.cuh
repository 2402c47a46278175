// SPDX-License-Identifier: Apache-2.0
// For few classes: one thread per row, so that work per row is done once. The row is in the thread's
// registers. Rows next to each other are moved to shared memory, and back, as they are, 16 bytes at a time.
// So are rows whose classes are apart, if 16 bytes of a class belong to neighbouring rows. A thread accesses
// other rows in memory itself.
#pragma once

#include <cstring>

#include "row.cuh"

namespace softkern::cuda {
namespace {

/// An access to shared memory by the size of W, to which `at` is aligned.
template <class W>
SK_INLINE W get(const char* at) {
  W word;
  memcpy(&word, __builtin_assume_aligned(at, sizeof(W)), sizeof(W));
  return word;
}
template <class W>
SK_INLINE void set(char* at, W word) {
  memcpy(__builtin_assume_aligned(at, sizeof(W)), &word, sizeof(W));
}

/// P elements that are read or written together, as they are in memory.
template <class T, int P>
using Piece = std::conditional_t<P * sizeof(T) == 2, uint16_t,
                                 std::conditional_t<P * sizeof(T) == 4, uint32_t,
                                                    std::conditional_t<P * sizeof(T) == 8, uint64_t, Words>>>;
template <class T, int P>
SK_INLINE void unpack_piece(const Piece<T, P>& piece, Compute<T> (&v)[P]) {
  if constexpr (P == kVector<T>) {
    unpack<T>(piece, v);
  } else if constexpr (P == 1) {
    v[0] = widen(bits_as<T>(piece));
  } else if constexpr (sizeof(T) == 2) {
    unpack_pair<T>(piece, v[0], v[1]);
  } else {
    v[0] = bits_as<float>(static_cast<uint32_t>(piece));
    v[1] = bits_as<float>(static_cast<uint32_t>(piece >> 32));
  }
}
template <class T, int P>
SK_INLINE Piece<T, P> pack_piece(const Compute<T> (&v)[P]) {
  if constexpr (P == kVector<T>) {
    return pack<T>(v);
  } else if constexpr (P == 1) {
    return bits_as<Piece<T, 1>>(narrow<T>(v[0]));
  } else if constexpr (sizeof(T) == 2) {
    return narrow_pair<T>(v[0], v[1]);
  } else {
    return bits_as<uint32_t>(v[0]) | static_cast<uint64_t>(bits_as<uint32_t>(v[1])) << 32;
  }
}

/// How a thread accesses its row: in shared memory, 16 bytes, two elements or one at a time; one element at a
/// time in shared memory where the numbers of a class are next to each other, or in the tensor's memory.
enum class ByThread : int { kWords, kPairs, kElements, kColumns, kMemory };

/// A tensor, and how the threads of a tile access its rows.
struct TileRows {
  Rows rows;
  ByThread by;
  // The first row of a block begins so many bytes after a multiple of 16, in memory and in shared memory. It
  // is the same number for each block.
  int skip;
  int swap;   // see Tile::word()
  int bytes;  // of a row that lies next to its neighbours
};

template <class T>
TileRows tile_rows(const Rows& rows, const Grid& grid) {
  constexpr int kSize = sizeof(T), kWord = sizeof(Words);
  static_assert(tile_threads(kSize) * kSize % kWord == 0);
  const int64_t classes = grid.shape.classes, inner = grid.shape.inner;
  if (column_word(rows, grid.shape, grid.rows, kSize) == kWord) return {rows, ByThread::kColumns, 0, 0, 0};
  const bool side_by_side = inner == 1 ? rows.outer_stride == classes
                                       : rows.inner_stride == classes && rows.outer_stride == inner * classes;
  if (rows.class_stride != 1 || !side_by_side) return {rows, ByThread::kMemory, 0, 0, 0};
  const int skip = static_cast<int>(reinterpret_cast<uintptr_t>(rows.data) % kWord);
  const int bytes = static_cast<int>(classes) * kSize, words = bytes / kWord;
  if (skip == 0 && bytes % kWord == 0) {
    const bool power_of_two = (words & (words - 1)) == 0;
    return {rows, ByThread::kWords, 0, power_of_two ? (words - 1) & 7 : 0, bytes};
  }
  const bool pairs = classes % 2 == 0 && skip % (2 * kSize) == 0;
  return {rows, pairs ? ByThread::kPairs : ByThread::kElements, skip, 0, bytes};
}

/// A tensor's rows of one block, up to kMost classes each, and their place in its shared memory: the place
/// number `index`. A tensor that is written may have the place of one that was read.
template <class T, int kMost>
class Tile {
  using A = Compute<T>;
  static constexpr int kThreads = tile_threads(sizeof(T)), kSize = sizeof(T), V = kVector<T>;
  static constexpr int kWord = sizeof(Words);
  static constexpr int kMoves = kMost * kSize / kWord;  // 16-byte words that a thread moves at most
  static_assert(kMoves > 0 && kThreads % 64 == 0);

 public:
  // Of two elements, the second one may lie behind the end of the row.
  static constexpr int kGroup = 2;
  using Row = A[kMost][1];
  using Asked = Words[kMoves];

  SK_INLINE Tile(const Grid& grid, const TileRows& tensor, int index = 0)
      : tensor_(tensor), inner_(grid.shape.inner), classes_(static_cast<int>(grid.shape.classes)) {
    first_ = static_cast<int64_t>(blockIdx.x) * kThreads;
    const int64_t left = grid.rows - first_;
    rows_ = left < kThreads ? static_cast<int>(left) : kThreads;
    at_ = shared_memory() + index * place_bytes(classes_);
  }
  /// With room for the words that the rows begin and end in. Threads read kMost classes, also behind the end
  /// of the last row, or kGroup classes of columns at a time.
  static constexpr int place_bytes(int64_t classes) {
    return kThreads * static_cast<int>(classes) * kSize + std::max(kMost, kThreads) * kSize + 2 * kWord;
  }
  SK_INLINE int64_t row() const { return first_ + static_cast<int>(threadIdx.x); }

  /// Memory to shared memory, before a barrier, in two steps: a thread asks for its words, and puts them into
  /// their place when it needs something else from memory.
  SK_INLINE void ask(Asked& words) const {
    each_word([&](int j, const Words* p, char*) { words[j] = *p; });
  }
  SK_INLINE void keep(const Asked& words) const {
    each_word([&](int j, const Words*, char* here) { set(here, words[j]); });
    move_ends<true>();
  }
  SK_INLINE void load() const {
    Asked words;
    ask(words);
    keep(words);
  }
  /// Shared memory to memory, after a barrier.
  SK_INLINE void store() const {
    each_word([&](int, Words* p, const char* here) { *p = get<Words>(here); });
    move_ends<false>();
  }

  /// To be called when all rows of `read`, which has the same place, were read, and before rows are written.
  SK_INLINE void replace(const Tile& read) const {
    // Otherwise a thread's row takes the place of its own row.
    if (tensor_.skip != read.tensor_.skip || has_columns() != read.has_columns()) sync_block();
  }

  /// Reads the thread's own row and returns its maximum. Instead of a row that does not exist, it reads some
  /// numbers.
  SK_INLINE A read(Row& v, A fill) const {
    const char* own = at_ + own_byte();
    switch (tensor_.by) {
      case ByThread::kWords: {
        const int first = own_byte() / kWord;
        return read_pieces<V, kMost>(v, fill, [&](int c) { return get<Words>(word(first + c / V)); });
      }
      case ByThread::kPairs:
        return read_pieces<2, kMost>(v, fill, [&](int c) { return get<Piece<T, 2>>(own + c * kSize); });
      case ByThread::kElements:
        return read_pieces<1, kMost>(v, fill, [&](int c) { return get<Piece<T, 1>>(own + c * kSize); });
      case ByThread::kColumns:
        return read_pieces<1, 0, kGroup>(v, fill, [&](int c) { return get<Piece<T, 1>>(in_column(c)); });
      default: {
        const T* p = own_in_memory();
        return read_pieces<1, 0>(
            v, fill, [&](int c) { return bits_as<Piece<T, 1>>(p[c * tensor_.rows.class_stride]); });
      }
    }
  }
  /// Writes the thread's own row.
  SK_INLINE void write(const Row& v) const {
    char* own = at_ + own_byte();
    switch (tensor_.by) {
      case ByThread::kWords: {
        const int first = own_byte() / kWord;
        return write_pieces<V>(v, [&](int c, const Words& x) { set(word(first + c / V), x); });
      }
      case ByThread::kPairs:
        return write_pieces<2>(v, [&](int c, Piece<T, 2> x) { set(own + c * kSize, x); });
      case ByThread::kElements:
        return write_pieces<1>(v, [&](int c, Piece<T, 1> x) { set(own + c * kSize, x); });
      case ByThread::kColumns:
        return write_pieces<1, kGroup>(v, [&](int c, Piece<T, 1> x) { set(in_column(c), x); });
      default: {
        if (!exists()) return;
        T* p = own_in_memory();
        write_pieces<1>(v, [&](int c, Piece<T, 1> x) { p[c * tensor_.rows.class_stride] = bits_as<T>(x); });
      }
    }
  }
  /// One class of the thread's own row, after load() and a barrier.
  SK_INLINE A at(int c) const {
    if (in_memory()) return widen(own_in_memory()[c * tensor_.rows.class_stride]);
    return widen(bits_as<T>(get<Piece<T, 1>>(own_place(c))));
  }
  /// Writes one class after write().
  SK_INLINE void put(int c, A v) const {
    if (!in_memory()) {
      set(own_place(c), bits_as<Piece<T, 1>>(narrow<T>(v)));
    } else if (exists()) {
      own_in_memory()[c * tensor_.rows.class_stride] = narrow<T>(v);
    }
  }
  SK_INLINE int classes() const { return classes_; }

 private:
  SK_INLINE bool in_memory() const { return tensor_.by == ByThread::kMemory; }
  SK_INLINE bool has_columns() const { return tensor_.by == ByThread::kColumns; }
  SK_INLINE bool exists() const { return static_cast<int>(threadIdx.x) < rows_; }
  SK_INLINE T* own_in_memory() const {
    const int64_t row = first_ + (exists() ? static_cast<int>(threadIdx.x) : 0);
    return in_global_memory(row_of<T>(tensor_.rows, row, inner_));
  }
  SK_INLINE uint32_t own_byte() const { return tensor_.skip + threadIdx.x * tensor_.bytes; }
  /// Word number i, 16 bytes. Rows of 2, 4 or 8 words lie so that 8 neighbouring threads, which read a word
  /// each at the same time, read from all banks: words of such rows are swapped among themselves.
  SK_INLINE char* word(uint32_t i) const { return at_ + (i ^ (i >> 3 & tensor_.swap)) * kWord; }
  SK_INLINE char* place(uint32_t byte) const { return word(byte / kWord) + byte % kWord; }
  SK_INLINE char* in_column(int c) const {
    return at_ + (c * kThreads + static_cast<int>(threadIdx.x)) * kSize;
  }
  SK_INLINE char* own_place(int c) const {
    return has_columns() ? in_column(c) : place(own_byte() + c * kSize);
  }

  /// get(c) returns the piece that begins at class c, for all c < kReadable and all classes of the row, a
  /// multiple of kTogether of them. All loads come first: a warp waits once for all of them.
  template <int P, int kReadable, int kTogether = P, class F>
  SK_INLINE A read_pieces(Row& v, A fill, F get) const {
    constexpr int kStep = P > kGroup ? P : kGroup;
    Piece<T, P> pieces[kMost / P];
    SK_UNROLL
    for (int c = 0; c < kMost; c += P) {
      if (c >= kReadable && c % kTogether == 0 && c >= classes_) break;
      pieces[c / P] = get(c);
    }
    A m = -INFINITY;
    SK_UNROLL
    for (int from = 0; from < kMost; from += kStep) {
      if (from >= classes_) break;
      SK_UNROLL
      for (int c = from; c < from + kStep; c += P) {
        A x[P] = {fill};
        if (c == from || c < classes_) unpack_piece<T, P>(pieces[c / P], x);
        SK_UNROLL
        for (int i = 0; i < P; ++i) {
          v[c + i][0] = x[i];
          m = larger(m, x[i]);
        }
      }
    }
    return m;
  }
  template <int P, int kTogether = P, class F>
  SK_INLINE void write_pieces(const Row& v, F set) const {
    SK_UNROLL
    for (int c = 0; c < kMost; c += P) {
      if (c % kTogether == 0 && c >= classes_) break;
      A x[P];
      SK_UNROLL
      for (int i = 0; i < P; ++i) x[i] = v[c + i][0];
      set(c, pack_piece<T, P>(x));
    }
  }

  SK_INLINE uint32_t end() const { return tensor_.skip + rows_ * tensor_.bytes; }
  /// The word in which the rows begin, in memory.
  SK_INLINE char* memory() const {
    return static_cast<char*>(tensor_.rows.data) - tensor_.skip + first_ * tensor_.bytes;
  }
  /// The first word that belongs to the rows as a whole.
  SK_INLINE uint32_t first_word() const { return tensor_.skip > 0; }
  /// Calls f(j, p, here) for each of the thread's whole words, number j of them, in memory and in shared
  /// memory.
  template <class F>
  SK_INLINE void each_word(F f) const {
    if (in_memory()) return;
    if (has_columns()) return each_word_of_columns(f);
    const uint32_t i = first_word() + threadIdx.x;
    Words* p = in_global_memory(reinterpret_cast<Words*>(memory())) + i;
    char* here = word(i);
    SK_UNROLL
    for (int j = 0; j < kMoves; ++j) {
      if (i + j * kThreads < end() / kWord) f(j, p + j * kThreads, here + j * kThreads * kWord);
    }
  }
  template <class F>
  SK_INLINE void each_word_of_columns(F f) const {
    constexpr int kWords = kThreads * kSize / kWord;  // of a class
    static_assert(kThreads % kWords == 0);
    const int thread = static_cast<int>(threadIdx.x), own = thread % kWords * V;
    if (own >= rows_) return;
    T* row = row_of<T>(tensor_.rows, first_ + own, inner_);
    SK_UNROLL
    for (int j = 0; j < kMoves; ++j) {
      const int c = thread / kWords + j * (kThreads / kWords);
      if (c >= classes_) break;
      Words* p = in_global_memory(reinterpret_cast<Words*>(row + c * tensor_.rows.class_stride));
      f(j, p, at_ + (thread + j * kThreads) * kWord);
    }
  }
  /// The first and the last word may belong to the rows in part.
  template <bool kIn>
  SK_INLINE void move_ends() const {
    if (in_memory() || has_columns()) return;
    const uint32_t last = end() / kWord * kWord;
    if (tensor_.skip > 0) move_elements<kIn>(tensor_.skip, end() < kWord ? end() : kWord);
    if (end() > last && last / kWord >= first_word()) move_elements<kIn>(last, end());
  }
  template <bool kIn>
  SK_INLINE void move_elements(uint32_t from, uint32_t end) const {
    const uint32_t byte = from + threadIdx.x * kSize;
    if (byte >= end) return;
    auto* p = in_global_memory(reinterpret_cast<Piece<T, 1>*>(memory() + byte));
    if constexpr (kIn) {
      set(place(byte), *p);
    } else {
      *p = get<Piece<T, 1>>(place(byte));
    }
  }

  TileRows tensor_;
  int64_t inner_;
  int classes_, rows_;  // rows_: those of the block that exist
  int64_t first_;
  char* at_;
};

/// A thread's own row, which is read from one tile and written to another one. A row that does not exist has
/// the same steps, and nobody reads its results.
template <class T, int kMost>
class TileRow {
  using A = Compute<T>;
  using Rows = Tile<T, kMost>;

 public:
  static constexpr bool kKeeps = true, kHoldsTerms = true, kInShared = false;
  SK_INLINE TileRow(const Rows& in, const Rows& out, A fill) : out_(out) { max_ = in.read(v_, fill); }
  SK_INLINE A max() const { return max_; }
  template <class F>
  SK_INLINE void each(F f) {
    go([&](int c) { f(v_[c], c); });
  }
  template <class F>
  SK_INLINE void write(const Span<T>&, F f) {
    each(f);
    out_.write(v_);
  }
  SK_INLINE bool has(int) const { return true; }
  SK_INLINE void put(const Span<T>&, int c, A v) const { out_.put(c, v); }
  template <class F>
  SK_INLINE void each_with(TileRow& other, F f) {
    go([&](int c) { f(v_[c], other.v_[c]); });
  }
  template <class F>
  SK_INLINE void write_with(TileRow& other, const Span<T>&, F f) {
    each_with(other, f);
    out_.write(v_);
  }

 private:
  template <class F>
  SK_INLINE void go(F f) {
    SK_UNROLL
    for (int c = 0; c < kMost; c += Rows::kGroup) {
      if (c >= out_.classes()) break;
      SK_UNROLL
      for (int i = 0; i < Rows::kGroup; ++i) f(c + i);
    }
  }
  typename Rows::Row v_;
  A max_;
  const Rows& out_;
};

/// Calls start(kMost, dims) for the smallest kMost that is enough, and at least kLeast: of kernels that take
/// long to compile, there are fewer.
template <class T, int kLeast = 8, class F>
const char* with_tile(const Shape& shape, int64_t rows, int tiles, F start) {
  const auto with = [&](auto most) {
    constexpr int kThreads = tile_threads(sizeof(T));
    const auto bytes =
        static_cast<size_t>(tiles * Tile<T, decltype(most)::value>::place_bytes(shape.classes));
    return start(most, Dims{ceil_div(rows, kThreads), kThreads, 1, bytes});
  };
  if constexpr (kLeast <= 8) {
    if (shape.classes <= 8) return with(std::integral_constant<int, 8>());
  }
  if constexpr (kLeast <= 16) {
    if (shape.classes <= 16) return with(std::integral_constant<int, 16>());
  }
  return with(std::integral_constant<int, static_cast<int>(kTileClasses)>());
}

}  // namespace
}  // namespace softkern::cuda
