// SPDX-License-Identifier: Apache-2.0
// The loss and the gradient of cross_entropy (common/loss.h). The target mass is hot, spread, or both
// (common/mass.h).
#include <type_traits>

#include "../common/loss.h"
#include "launch.cuh"
#include "mass.cuh"
#include "targets.cuh"

namespace softkern::cuda {
namespace {

/// Beside the row, a thread needs registers for the hot class. With mass that is spread, it also needs them
/// for more sums, and for another tensor if the mass is not uniform.
template <class T, Spread kMass>
struct LossLimits : OneTensor<T> {
  static constexpr bool kSpread = kMass == Spread::kAny;
  // Of ties and the rest; of m - x; and of the mass.
  static constexpr int kSums = kMass == Spread::kNone ? 2 : kMass == Spread::kUniform ? 3 : 4;
  static constexpr int kSome = kSpread && sizeof(T) == 2 ? 16 : OneTensor<T>::kSome;
  static constexpr int kMany = kMass != Spread::kNone ? 0 : OneTensor<T>::kMany;
  static constexpr int kMostThreads = kSpread ? 512 : OneTensor<T>::kMostThreads;
  static constexpr int kMostWithMany = kMostThreads;
  // Enough threads for 51,200 classes of 16 bits.
  static constexpr int kMostSpansWithMany = sizeof(T) == 2 ? 800 : kMostThreads;
  static constexpr int kMostWithElements = !kSpread ? 512 : sizeof(T) == 8 ? 256 : 384;
  static constexpr int kSmallRegisters = sizeof(T) == 8 ? 128 : kSpread ? 96 : 64;
  static constexpr bool kSpans = !kSpread;
  static constexpr int kSharedTensors = kSpread ? 0 : 1;
  // A thread that keeps many elements has no registers left for uniform mass.
  static constexpr int kSharedFrom = OneTensor<T>::kSharedFrom / (kMass == Spread::kUniform ? 2 : 1);
  static constexpr int kSpansSharedFrom = kSharedFrom;
};

/// CrossEntropyArgs in the form that kernels take.
template <class T>
struct Call {
  using A = Compute<T>;
  Rows logits;
  IndexTarget target;
  Rows probabilities;
  const T* weight;
  MassNumbers<A> numbers;
  A constant_factor;
  const A* factor;
  void* loss;
  bool narrow_loss;
  Rows grad;
};

/// The target class of a row with class indices.
template <class A, class Index>
struct Hot {
  Index index = -1;  // none
  A mass = 0;
  A x = 0;
};

/// The target of a row, which is read before the row's logits.
template <class T, Spread kMass, class Index>
struct RowTarget {
  using A = Compute<T>;
  Hot<A, Index> hot;
  bool spread_counts = false;
  typename MassOf<T, kMass>::type mass;
  /// Whether the row exists, and is not ignored.
  SK_INLINE bool counts() const { return kMass == Spread::kAny ? spread_counts : hot.index >= 0; }
};

/// The class index of a row; that of ignored rows, if the row does not exist or has no index.
template <class T>
SK_INLINE int64_t index_of(const Grid& grid, const Call<T>& call, int64_t row) {
  return row < grid.rows && call.target.at != nullptr ? call.target.of(row) : call.target.ignore_index;
}

/// y: index_of() the row. The logit of this class is not read.
template <class T, Spread kMass, class Index>
SK_INLINE RowTarget<T, kMass, Index> target_of(const Grid& grid, const Call<T>& call, int64_t row,
                                               int64_t y) {
  using A = Compute<T>;
  RowTarget<T, kMass, Index> result;
  bool counts = row < grid.rows;
  if (counts && call.target.at != nullptr) {
    counts = y != call.target.ignore_index;
    if (counts) {
      // Stops before anything is read for a class that is out of range.
      stop_unless(y >= 0 && y < grid.shape.classes, kOutOfBounds);
      result.hot.index = static_cast<Index>(y);
      result.hot.mass = hot_mass<Lane<A>>(call.numbers);
      if (call.weight != nullptr) result.hot.mass = weighted<Lane<A>>(result.hot.mass, widen(call.weight[y]));
    }
  }
  if constexpr (kMass == Spread::kUniform) {
    result.mass = {uniform_mass<Lane<A>>(call.numbers), counts ? grid.shape.classes : 0};
  } else if constexpr (kMass == Spread::kAny) {
    result.spread_counts = counts;
    Span<const T> t{nullptr, 0, 0};
    if (call.probabilities.data != nullptr) t = span_of<const T>(call.probabilities, grid, row);
    result.mass = {t, call.weight, call.numbers, counts ? grid.shape.classes : 0};
  }
  return result;
}

/// The same, with the logit of the class.
template <class T, Spread kMass, class Index>
SK_INLINE RowTarget<T, kMass, Index> target_of(const Grid& grid, const Call<T>& call, int64_t row) {
  auto result = target_of<T, kMass, Index>(grid, call, row, index_of(grid, call, row));
  if (result.hot.index >= 0) {
    const T* x = row_of<const T>(call.logits, row, grid.shape.inner);
    result.hot.x = widen(x[result.hot.index * call.logits.class_stride]);
  }
  return result;
}

template <class T>
SK_INLINE void store_loss(const Call<T>& call, int64_t row, Compute<T> loss) {
  if (call.narrow_loss) {
    static_cast<T*>(call.loss)[row] = narrow<T>(loss);
  } else {
    static_cast<Compute<T>*>(call.loss)[row] = loss;
  }
}

template <class T, Spread kMass, class Index, class Row>
SK_INLINE void write_gradient(Row& row, Compute<T> factor, const RowTarget<T, kMass, Index>& target,
                              const Span<T>& out, const Stats<Compute<T>>& s) {
  using A = Compute<T>;
  using L = Lane<A>;
  const A divisor = L::divisor(s.total());
  A scale = gradient_scale<L>(factor, target.hot.mass, s.mass, divisor) * TermsOf<T>::kUnit;
  // Ignored rows must yield +0, so their terms are scaled by 0. A row that is kept as logits was cleared to
  // zeros, and a streamed row was not read and has no terms. A row that holds its terms is set to 0 below.
  if (!Row::kHoldsTerms && !target.counts()) scale = 0;
  A hot_dx = hot_gradient<L>(factor, target.hot.mass, s.mass, target.hot.x,
                             Terms<A>(finite(s.m)).of(target.hot.x), s.m, s.ties, s.rest, divisor);
  A share = 0;  // g a_c, if all classes have the same mass a_c
  if constexpr (kMass == Spread::kUniform) {
    hot_dx = less_mass<L>(hot_dx, target.mass.share, -factor);
    share = target.counts() ? factor * target.mass.share : A(0);
  } else if constexpr (kMass == Spread::kAny) {
    A a[1];
    if (target.hot.index >= 0 && target.mass.load(target.hot.index, a))
      hot_dx = less_mass<L>(hot_dx, a[0], -factor);
  }
  const TermsOf<T> terms(finite(s.m));
  row.write(out, [&](auto& v, Index c) {  // 3 write
    constexpr int V = sizeof(v) / sizeof(A);
    SK_UNROLL
    for (int i = 0; i < V; ++i) {
      const A e = Row::kHoldsTerms ? v[i] : terms.of(v[i]);
      v[i] = kMass == Spread::kUniform ? fused(e, scale, -share) : e * scale;
      if (Row::kHoldsTerms && !target.counts()) v[i] = 0;
    }
    if constexpr (kMass == Spread::kAny) {
      A a[V];
      if (target.mass.load(c, a)) {
        SK_UNROLL
        for (int i = 0; i < V; ++i) v[i] = less_mass<L>(v[i], a[i], -factor);
      }
    }
  });
  // The hot class is written after the loop: comparing each class with it would take as long as the
  // multiplication. Without forget(), the compiler would make a second copy of the loop for rows without a
  // hot class.
  Index hot = target.hot.index;
  forget(hot);
  if (hot >= 0) row.put(out, hot, hot_dx);
}

/// The factor of all gradients.
template <class T>
SK_INLINE Compute<T> factor_of(const Call<T>& call) {
  return call.factor != nullptr ? call.constant_factor * *call.factor : call.constant_factor;
}

/// `out` has no memory if no gradient is wanted. factor() returns factor_of(call): a thread that keeps a row
/// in registers has none left for it before. number() returns the row whose loss this thread writes, or -1.
template <class T, Spread kMass, class Index, class Team, class Row, class Factor, class Number>
SK_INLINE void cross_entropy_row(Team& team, Row& row, const Call<T>& call, Factor factor,
                                 const RowTarget<T, kMass, Index>& target, const Span<T>& out,
                                 Number number) {
  using A = Compute<T>;
  using L = Lane<A>;
  // A kept row in shared memory has this logit itself.
  const bool reads = Row::kKeeps && !Row::kInShared && target.hot.index >= 0;
  const Stats<A> s = statistics<true, true, T>(team, row, target.mass, reads ? target.hot.x : A(-INFINITY));
  const A d_less_one = s.d_less_one(), below = s.m - target.hot.x;
  const auto write_loss = [&] {
    const int64_t own = number();
    if (own < 0) return;
    const A log_d = L::log_one_plus(d_less_one);
    A loss = target.hot.index >= 0 ? hot_loss<L>(target.hot.mass, below, log_d) : A(0);
    if (kMass != Spread::kNone) loss += spread_loss<L>(s.mass, s.below, log_d);
    store_loss(call, own, target.counts() ? loss : A(0));
  };
  // The logarithm takes registers. A kept row leaves few of them until it is written, so its loss comes last.
  if (!Row::kKeeps) write_loss();
  if (call.grad.data != nullptr) write_gradient<T, kMass, Index>(row, factor(), target, out, s);
  if (Row::kKeeps) write_loss();
}

template <class T, Spread kMass, Access kAccess, int E>
__global__ void SK_BOUNDS(LossLimits<T, kMass>, kAccess, E) cross_entropy_kernel(Grid grid, Call<T> call) {
  follow_previous_kernel();
  TeamOf<LossLimits<T, kMass>, T, E> team(grid.team);
  const int64_t number = team.row();
  // A row that threads keep has few enough classes for an int.
  using Index = std::conditional_t<(E > 0), int, int64_t>;
  Span<T> x = span_of<T>(call.logits, grid, number);
  using Row = typename RowOf<T, kAccess, E>::type;
  Row row(team);
  // Ignored rows need not be read. But finding out takes as long as reading a short row, so a kept row is
  // read at the same time as its target.
  constexpr bool kAtOnce = Row::kKeeps && kMass != Spread::kAny;
  if (kAtOnce) row.load(x, -INFINITY);
  const auto target = target_of<T, kMass, Index>(grid, call, number);
  if constexpr (!kAtOnce) {
    if (!target.counts()) x.classes = 0;
    row.load(x, -INFINITY);
  } else if constexpr (!Row::kHoldsTerms) {
    if (!target.counts()) row.clear();
  }
  team.meet();
  const Span<T> out = call.grad.data != nullptr ? span_of<T>(call.grad, grid, number) : Span<T>{};
  cross_entropy_row<T, kMass, Index>(
      team, row, call, [&] { return factor_of(call); }, target, out,
      [&] {
        const int64_t again = team.row();
        return team.rank() == 0 && again < grid.rows ? again : -1;
      });
}

/// Rows in shared memory. The thread that has the target class reads its logit there, and writes the loss.
template <class T, Spread kMass, Access kAccess>
__global__ void SK_SHARED_BOUNDS(T) cross_entropy_shared_kernel(Grid grid, Call<T> call) {
  follow_previous_kernel();
  Team<Compute<T>, Kinds::kBlocks> team(grid.team);
  SharedRow<T, kAccess> row(team, grid, -INFINITY);
  const bool writes = call.grad.data != nullptr;
  const Compute<T> factor = factor_of(call);
  const int64_t step = team.rows_at_a_time();
  int64_t number = team.row();
  row.ask(span_of<T>(call.logits, grid, number));
  auto target = target_of<T, kMass, int>(grid, call, number, index_of(grid, call, number));
  int64_t next_y = index_of(grid, call, number + step);
  team.meet();
  while (number < grid.rows) {
    row.arrive();
    const int hot = target.hot.index;
    if (!target.counts()) {
      row.clear();
    } else if (row.has(hot)) {
      target.hot.x = row.at(hot);
    }
    // The index of the row after the next one is loaded now, so that nothing waits for it: ignored rows are
    // not asked for.
    const int64_t next = number + step;
    const auto next_target = target_of<T, kMass, int>(grid, call, next, next_y);
    next_y = index_of(grid, call, next + step);
    row.set_next(next_target.counts() ? span_of<T>(call.logits, grid, next) : Span<T>{}, !writes);
    const Span<T> out = writes ? span_of<T>(call.grad, grid, number) : Span<T>{};
    cross_entropy_row<T, kMass, int>(
        team, row, call, [&] { return factor; }, target, out,
        [&] { return (hot >= 0 ? row.has(hot) : team.rank() == 0) ? number : -1; });
    target = next_target;
    number = next;
  }
}

/// Rows whose classes are apart, in shared memory.
template <class T, Spread kMass>
__global__ void SK_SHARED_BOUNDS(T)
    cross_entropy_columns_kernel(Grid grid, Call<T> call, ColumnRows logits, ColumnRows grad) {
  follow_previous_kernel();
  ColumnTeam<T> team(grid.team);
  const ColumnTile<T> in(grid, logits), out(grid, grad);
  SharedColumn<T> row(team, grid, in);
  each_tile<T>(grid, [&](int64_t first) {
    in.ask(first);
    const int64_t number = first + team.lane();
    auto target = target_of<T, kMass, int>(grid, call, number, index_of(grid, call, number));
    in.arrive();
    const int hot = target.hot.index;
    if (!target.counts()) {
      row.clear();
    } else if (row.has(hot)) {
      target.hot.x = row.at(hot);
    }
    cross_entropy_row<T, kMass, int>(
        team, row, call, [&] { return factor_of(call); }, target, Span<T>{},
        [&] {
          const bool writes = hot >= 0 ? row.has(hot) : team.rank() == 0;
          return writes && number < grid.rows ? number : -1;
        });
    if (call.grad.data != nullptr) out.store(first);
  });
}

template <class T, Spread kMass, int kMost>
__global__ void cross_entropy_tile_kernel(Grid grid, Call<T> call, TileRows logits, TileRows grad) {
  follow_previous_kernel();
  const Tile<T, kMost> in(grid, logits), out(grid, grad);
  const int64_t number = in.row();
  typename Tile<T, kMost>::Asked words;
  in.ask(words);
  auto target = target_of<T, kMass, int>(grid, call, number);
  in.keep(words);
  sync_block();
  TileRow<T, kMost> row(in, out, -INFINITY);
  // The same number from shared memory, so that the compiler does not load it from memory.
  target.hot.x = target.hot.index >= 0 ? in.at(target.hot.index) : 0;
  out.replace(in);
  Alone<Compute<T>> team;
  cross_entropy_row<T, kMass, int>(
      team, row, call, [&] { return factor_of(call); }, target, Span<T>{},
      [&] { return number < grid.rows ? number : -1; });
  if (call.grad.data == nullptr) return;
  sync_block();
  out.store();
}

template <class T, Spread kMass>
Outcome launch(const CrossEntropyArgs& args, const DeviceStream& stream) {
  using A = Compute<T>;
  using Limits = LossLimits<T, kMass>;
  const Launch setup =
      launch_of<T, Limits>(args.shape, args.rows, stream, {&args.logits, &args.probabilities, &args.grad},
                           Limits::kSpread ? args.weight : nullptr);
  const Plan& plan = setup.plan;
  const Call<T> call{args.logits,
                     {args.target, args.target_type, args.options.ignore_index},
                     args.probabilities,
                     static_cast<const T*>(args.weight),
                     mass_numbers<A>(args.options, args.shape.classes),
                     static_cast<A>(args.grad_factor),
                     static_cast<const A*>(args.factor),
                     args.loss,
                     args.narrow_loss,
                     args.grad};
  if (plan.way == Way::kTile) {
    constexpr int kLeast = kMass == Spread::kAny ? 16 : 8;
    const char* error = with_tile<T, kLeast>(args.shape, args.rows, 1, [&](auto most, const Dims& tiles) {
      return start(cross_entropy_tile_kernel<T, kMass, most()>, tiles, stream, setup.grid, call,
                   tile_rows<T>(args.logits, setup.grid), tile_rows<T>(args.grad, setup.grid));
    });
    return {error, plan.path};
  }
  if constexpr (Limits::kSharedTensors > 0) {
    if (plan.way == Way::kShared) {
      const char* error = with_access(plan, [&](auto access) {
        return start(cross_entropy_shared_kernel<T, kMass, access>, setup.dims, stream, setup.grid, call);
      });
      return {error, plan.path};
    }
    if (plan.way == Way::kSharedColumns) {
      return {start(cross_entropy_columns_kernel<T, kMass>, setup.dims, stream, setup.grid, call,
                    column_rows<T>(args.logits, setup.grid), column_rows<T>(args.grad, setup.grid)),
              plan.path};
    }
  }
  const char* error = with_kernel<T, Limits>(plan, [&](auto kernel) {
    using K = decltype(kernel);
    return start(cross_entropy_kernel<T, kMass, K::kAccess, K::E>, setup.dims, stream, setup.grid, call);
  });
  return {error, plan.path};
}

}  // namespace

template <class T>
Outcome cross_entropy(const CrossEntropyArgs& args, const DeviceStream& stream) {
  const bool probabilities = args.probabilities.data != nullptr;
  const bool spread = has_spread_mass(args.options, probabilities);
  return with_clusters_that_fit(stream, [&](const DeviceStream& on) {
    if (!spread) return launch<T, Spread::kNone>(args, on);
    if (!probabilities && args.weight == nullptr) return launch<T, Spread::kUniform>(args, on);
    return launch<T, Spread::kAny>(args, on);
  });
}

template Outcome cross_entropy<SOFTKERN_ELEMENT>(const CrossEntropyArgs&, const DeviceStream&);

}  // namespace softkern::cuda
