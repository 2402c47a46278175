// SPDX-License-Identifier: Apache-2.0
// The losses and statistics of rows with softkern's own options, and the gradient of the logits
// (common/row_losses.h). One kernel serves forward and backward: it writes the results that are wanted, and
// the gradient for the upstream gradients that are given.
#include "../common/loss.h"
#include "launch.cuh"
#include "row_targets.cuh"

namespace softkern::cuda {
namespace {

/// Beside the row, threads need registers for more sums and, with spread mass, for another tensor.
template <class T, Form kForm>
struct RowLimits : OneTensor<T> {
  static constexpr bool kSpread = kForm == Form::kSpread, kDouble = sizeof(T) == 8;
  static constexpr int kSome = kSpread && sizeof(T) == 2 ? 16 : OneTensor<T>::kSome;
  static constexpr int kMany = kSpread ? 0 : OneTensor<T>::kMany;
  static constexpr int kMostThreads = kSpread && kDouble ? 384 : 512;
  // Enough threads for 151,936 classes of 16 bits in a cluster. More than 512 threads of float would spill on
  // sm_100.
  static constexpr int kMostWithMany = sizeof(T) == 2 ? 640 : kMostThreads;
  static constexpr int kMostSpansWithMany = kMostWithMany;
  static constexpr int kMostWithElements = kDouble ? 256 : 384;
  static constexpr int kSmallRegisters = kDouble ? 128 : 96;
  static constexpr bool kSpans = !kSpread;
};

template <Form kForm, class A, class Team>
SK_INLINE void add_up(Team& team, RowStats<A>& s, HotSums<A>& hot) {
  if constexpr (kForm == Form::kPlain) {
    A sums[2] = {s.ties, s.rest};
    team.sum(sums);
    s.ties = sums[0], s.rest = sums[1];
  } else if constexpr (kForm == Form::kGeneral) {
    A sums[3] = {s.ties, s.rest, s.terms_below};
    team.sum(sums);
    s.ties = sums[0], s.rest = sums[1], s.terms_below = sums[2];
  } else {
    A sums[7] = {s.ties, s.rest, s.terms_below, s.mass, s.below + hot.below, hot.mass, hot.log_prob};
    team.sum(sums);
    s.ties = sums[0], s.rest = sums[1], s.terms_below = sums[2], s.mass = sums[3], s.below = sums[4];
    hot.mass = sums[5], hot.log_prob = sums[6];
  }
}

/// The statistics of a whole row, and what its results and its gradient are made of.
template <class A>
struct Whole {
  RowStats<A> s;
  HotSums<A> hot;
  A log_d, divisor, mean_below;
};

template <class T, Form kForm, class Target, class Team>
SK_INLINE void write_results(const Team& team, const RowLossCall<T>& call, const Target& target,
                             const Whole<Compute<T>>& w, int64_t row, int64_t first) {
  using A = Compute<T>;
  using L = Lane<A>;
  const Numbers<A>& results = call.results;
  if constexpr (kForm == Form::kSpread) {
    if (results.log_prob != nullptr && call.per_row > 0) {
      for (int64_t k = team.rank(); k < call.per_row; k += team.size()) {
        const int64_t i = row * call.per_row + k;
        results.log_prob[i] = log_prob_of<L>(w.s.m - call.hot_z[i], w.log_d);
      }
    }
  }
  if (team.rank() != 0) return;
  const bool counts = target.counts;
  const A below = w.s.m - target.hot_z, lse = lse_of<L>(w.s.m, w.log_d);
  if (results.loss != nullptr) {
    A loss = target.hot >= 0 ? hot_loss<L>(target.hot_mass, below, w.log_d) : A(0);
    if (kForm == Form::kSpread) loss += spread_loss<L>(w.s.mass + w.hot.mass, w.s.below, w.log_d);
    if (call.z_loss != 0) loss += squared_lse<L>(call.z_loss, target.weight, lse);
    loss *= number_at<A>(call.row_weight, row, 1);
    results.loss[row] = counts ? loss : A(0);
  }
  if (results.log_prob != nullptr && call.per_row == 0) {
    results.log_prob[row] = counts ? log_prob_of<L>(below, w.log_d) : A(0);
  }
  if (results.lse != nullptr) results.lse[row] = counts ? lse : A(0);
  if (results.entropy != nullptr) {
    results.entropy[row] = counts ? entropy_of<L>(w.log_d, w.mean_below) : A(0);
  }
  if (call.argmax != nullptr) call.argmax[row] = counts ? first : -1;
  if (call.correct != nullptr) call.correct[row] = counts && first == target.hot;
}

/// What the gradient of every class of a row depends on.
template <class A>
struct Pull {
  A loss;     // g r
  A common;   // alpha without the hot parts
  A entropy;  // g_h
};

/// dz of a hot class. h: its hot part; others: that of all other classes.
template <class A>
SK_INLINE A hot_dz(const Whole<A>& w, const Pull<A>& pull, A z, A h, A others) {
  const RowStats<A>& s = w.s;
  const A e = Terms<A>(finite(s.m)).of(z);
  // Where e is 0, m - z may be infinite.
  const A of_entropy = e == 0 ? A(0) : pull.entropy * (s.m - z - w.mean_below);
  return hot_gradient<Lane<A>>(A(1), h, pull.common + others + of_entropy, z, e, s.m, s.ties, s.rest,
                               w.divisor);
}

template <class T, Form kForm, class Index, class Row>
SK_INLINE void write_gradient(Row& row, const RowLossCall<T>& call, const RowTarget<T, kForm, Index>& target,
                              const Span<T>& out, const Whole<Compute<T>>& w, int64_t number) {
  using A = Compute<T>;
  using L = Lane<A>;
  constexpr bool kPlain = kForm == Form::kPlain, kSpread = kForm == Form::kSpread;
  constexpr bool kHasTerms = kPlain && Row::kHoldsTerms;
  const Numbers<A>& upstream = call.upstream;
  Pull<A> pull{0, 0, 0};
  A hot = 0;
  if (target.counts) {
    pull.loss = call.factor != nullptr ? call.constant_factor * *call.factor : call.constant_factor;
    pull.loss *= number_at<A>(upstream.loss, number, 1);
    pull.loss *= number_at<A>(call.row_weight, number, 1);
    const A lse = lse_of<L>(w.s.m, w.log_d);
    pull.common = common_pull<L>(pull.loss, w.s.mass, call.z_loss, target.weight, lse,
                                 number_at<A>(upstream.lse, number, 0));
    if (!kPlain) pull.entropy = number_at<A>(upstream.entropy, number, 0);
    hot = pull.loss * (target.hot_mass + w.hot.mass) - w.hot.log_prob;
    if (target.hot >= 0) hot -= number_at<A>(upstream.log_prob, number, 0);
  }
  const A unit = kHasTerms ? A(1) : TermsOf<T>::kUnit;
  const A alpha = pull.common + hot;
  const A scale = L::over(alpha - pull.entropy * w.mean_below, w.divisor) * unit;
  const A slope = L::over(pull.entropy, w.divisor) * unit;
  const TermsOf<T> terms(finite(w.s.m));
  row.write(out, [&](auto& v, Index c) {  // 3 write
    constexpr int V = sizeof(v) / sizeof(A);
    to_z<kForm, Row>(call.logit, v);
    A dz[V];
    SK_UNROLL
    for (int i = 0; i < V; ++i) {
      const A e = kHasTerms ? v[i] : terms.of(v[i]);
      dz[i] = kPlain ? e * scale : term_pull<L>(scale, slope, e, w.s.m - v[i]);
    }
    if constexpr (kSpread) {
      A a[V];
      if (target.mass.load(c, a)) {
        SK_UNROLL
        for (int i = 0; i < V; ++i) dz[i] = less_mass<L>(dz[i], a[i], -pull.loss);
      }
    }
    SK_UNROLL
    for (int i = 0; i < V; ++i) {
      if (!kPlain) dz[i] *= logit_slope<L>(call.logit, v[i]);
      v[i] = target.counts ? dz[i] : A(0);
    }
  });
  // As in cross_entropy.cu, hot classes are written after the loop.
  const auto put = [&](Index y, A z, A dz) {
    if constexpr (kSpread) {
      A a[1];
      if (target.mass.load(y, a)) dz = less_mass<L>(dz, a[0], -pull.loss);
    }
    row.put(out, y, kPlain ? dz : dz * logit_slope<L>(call.logit, z));
  };
  Index y = target.hot;
  forget(y);
  if (y >= 0) put(y, target.hot_z, hot_dz(w, pull, target.hot_z, hot, A(0)));
  if constexpr (kSpread) {
    const int64_t begin = number * call.per_row, end = target.counts ? begin + call.per_row : begin;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t index = call.target.of(i);
      if (!row.has(static_cast<Index>(index))) continue;
      // Repeated indices add up; each of them writes the same.
      A own = 0, others = 0;
      for (int64_t j = begin; j < end; ++j) {
        const A h = pull.loss * call.hot_mass_at(j) - number_at<A>(upstream.log_prob, j, 0);
        const bool same = call.target.of(j) == index;
        own += same ? h : A(0);
        others += same ? A(0) : h;
      }
      const A z = call.hot_z[i];
      put(static_cast<Index>(index), z, hot_dz(w, pull, z, own, others));
    }
  }
}

/// number() returns the team's row. `out` has no memory if no gradient is wanted.
template <class T, Form kForm, class Index, class Team, class Row, class Number>
SK_INLINE void row_losses_row(Team& team, Row& row, const Grid& grid, const RowLossCall<T>& call,
                              const RowTarget<T, kForm, Index>& target, const Span<T>& out, Number number) {
  using A = Compute<T>;
  using L = Lane<A>;
  First<Index> first;
  Whole<A> w;
  w.s = thread_statistics<kForm, T>(team, row, target.mass, call.logit, call.wants_first(), first);
  if constexpr (kForm == Form::kSpread) w.hot = sum_indices(team, grid, call, number(), w.s.m);
  add_up<kForm>(team, w.s, w.hot);
  w.log_d = w.s.log_d();
  w.divisor = L::divisor(w.s.total());
  w.mean_below = L::over(w.s.terms_below, w.divisor);
  const int64_t argmax = call.wants_first() ? first.template of_row<A>(team) : Index(0);
  const int64_t own = number();
  if (own < grid.rows) write_results<T, kForm>(team, call, target, w, own, argmax);
  if (call.grad.data != nullptr) write_gradient<T, kForm, Index>(row, call, target, out, w, own);
}

/// Writes zeros to the gradient's classes that are not read.
template <class T>
SK_INLINE void clear_others(const Grid& grid, const RowLossCall<T>& call, int64_t row, int rank, int size) {
  if (row >= grid.rows || call.grad.data == nullptr) return;
  T* dx = row_of<T>(call.grad, row, grid.shape.inner);
  for (int64_t c = grid.shape.classes + rank; c < call.classes; c += size) {
    dx[c * call.grad.class_stride] = narrow<T>(0);
  }
}

template <class T, Form kForm, Access kAccess, int E>
__global__ void SK_BOUNDS(RowLimits<T, kForm>, kAccess, E) row_losses_kernel(Grid grid, RowLossCall<T> call) {
  TeamOf<RowLimits<T, kForm>, T, E> team(grid.team);
  const int64_t number = team.row();
  // A row that threads keep has few enough classes for an int.
  using Index = std::conditional_t<(E > 0), int, int64_t>;
  Span<T> x = span_of<T>(call.logits, grid, number);
  using Row = typename RowOf<T, kAccess, E>::type;
  Row row(team);
  // As in cross_entropy.cu: a short row is read at the same time as its target, and no block of a cluster
  // goes on before all of them have read the logit of the target class.
  const bool at_once = Row::kKeeps && kForm != Form::kSpread && grid.team.kind != TeamKind::kCluster;
  if (at_once) row.load(x, -INFINITY);
  const auto target = target_of<T, kForm, Index>(grid, call, number);
  if (!at_once) {
    if (!target.counts) x.classes = 0;
    row.load(x, -INFINITY);
  }
  team.meet();
  const Span<T> out = call.grad.data != nullptr ? span_of<T>(call.grad, grid, number) : Span<T>{};
  row_losses_row<T, kForm, Index>(team, row, grid, call, target, out, [&] { return team.row(); });
  clear_others(grid, call, team.row(), team.rank(), team.size());
}

template <class T, Form kForm>
__global__ void row_losses_tile_kernel(Grid grid, RowLossCall<T> call) {
  const Tile<T> tile(grid, 0);
  const int64_t number = tile.row();
  const auto target = target_of<T, kForm, int>(grid, call, number);
  tile.load(call.logits);
  sync_block();
  Alone<Compute<T>> team;
  const int classes = tile.own_classes();
  TileRow<T> row(tile.own(), target.counts ? classes : 0, classes);
  row_losses_row<T, kForm, int>(team, row, grid, call, target, Span<T>{}, [&] { return number; });
  if (call.grad.data == nullptr) return;
  sync_block();
  tile.store(call.grad);
  clear_others(grid, call, number, 0, 1);
}

template <class T, Form kForm>
Outcome launch(const RowLossArgs& args, const DeviceStream& stream) {
  using A = Compute<T>;
  using Limits = RowLimits<T, kForm>;
  const Plan plan =
      make_plan(args.shape, traits_of<T, Limits>(stream), {&args.logits, &args.probabilities, &args.grad},
                kForm == Form::kSpread ? args.weight : nullptr);
  // The class of argmax takes two more rounds of one number.
  const Dims dims = dims_of<A>(plan, args.shape, args.rows, (kForm == Form::kSpread ? 7 : 3) + 2, 1);
  const Grid grid{args.rows, args.shape, team_shape_of(plan)};
  const RowLossCall<T> call{args.logits,
                            args.classes,
                            {args.target, args.target_type, args.options.ignore_index},
                            args.per_row,
                            static_cast<const A*>(args.target_probs),
                            args.probabilities,
                            static_cast<const T*>(args.weight),
                            static_cast<const A*>(args.row_weight),
                            mass_numbers<A>(args.options, args.shape.classes),
                            logit_numbers<A>(args.options),
                            static_cast<A>(args.options.z_loss),
                            numbers_of<A>(args.results),
                            args.argmax,
                            args.correct,
                            args.grad,
                            static_cast<A>(args.grad_factor),
                            static_cast<const A*>(args.factor),
                            numbers_of<A>(args.upstream),
                            static_cast<A*>(args.hot_z)};
  if (plan.way == Way::kTile) {
    return {start(row_losses_tile_kernel<T, kForm>, dims, stream, grid, call), plan.path};
  }
  const char* error = with_kernel<T, Limits>(plan, [&](auto kernel) {
    using K = decltype(kernel);
    return start(row_losses_kernel<T, kForm, K::kAccess, K::E>, dims, stream, grid, call);
  });
  return {error, plan.path};
}

Form form_of(const RowLossArgs& args) {
  const bool entropy = args.results.entropy != nullptr || args.upstream.entropy != nullptr;
  if (args.per_row > 0 || has_spread_mass(args.options, args.probabilities.data != nullptr))
    return Form::kSpread;
  return entropy || transforms_logits(args.options) ? Form::kGeneral : Form::kPlain;
}

}  // namespace

template <class T>
Outcome row_losses(const RowLossArgs& args, const DeviceStream& stream) {
  return with_clusters_that_fit(stream, [&](const DeviceStream& on) {
    switch (form_of(args)) {
      case Form::kPlain:
        return launch<T, Form::kPlain>(args, on);
      case Form::kGeneral:
        return launch<T, Form::kGeneral>(args, on);
      default:
        return launch<T, Form::kSpread>(args, on);
    }
  });
}

template Outcome row_losses<SOFTKERN_ELEMENT>(const RowLossArgs&, const DeviceStream&);

}  // namespace softkern::cuda
