// SPDX-License-Identifier: Apache-2.0
// The losses and statistics of rows with softkern's own options, and the gradient of the logits
// (common/row_losses.h). One kernel serves forward and backward: it writes the results that are wanted, and
// the gradient for the upstream gradients that are given.
#include "launch.cuh"
#include "row_gradient.cuh"
#include "row_results.cuh"

namespace softkern::cuda {
namespace {

/// Beside the row, threads need registers for more sums and, with spread mass, for another tensor.
template <class T, Form kForm>
struct RowLimits : OneTensor<T> {
  static constexpr bool kSpread = kForm == Form::kSpread, kDouble = sizeof(T) == 8;
  static constexpr int kSome = kSpread && sizeof(T) == 2 ? 16 : OneTensor<T>::kSome;
  static constexpr int kMany = kSpread ? 0 : OneTensor<T>::kMany;
  static constexpr int kMostThreads = kDouble && kForm != Form::kPlain ? 384 : 512;
  // Enough threads for 151,936 classes of 16 bits in a cluster. More than 512 threads of float would spill on
  // sm_100.
  static constexpr int kMostWithMany = sizeof(T) == 2 ? 640 : kMostThreads;
  static constexpr int kMostSpansWithMany = kMostWithMany;
  static constexpr int kMostWithElements = kDouble ? 256 : 384;
  static constexpr int kSmallRegisters = kDouble ? 128 : kSpread ? 112 : 96;
  static constexpr bool kSpans = !kSpread, kManyFirst = false, kManyInClusters = true;
  static constexpr int kSharedTensors = 0;
  static constexpr int kSums = kSpread ? 7 : 3;
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

/// number() returns the team's row. `out` has no memory if no gradient is wanted.
template <class T, Form kForm, class Index, class Team, class Row, class Number>
SK_INLINE void row_losses_row(Team& team, Row& row, const Grid& grid, const RowLossCall<T>& call,
                              const RowTarget<T, kForm, Index>& target, const Span<T>& out, Number number) {
  First<Index> first;
  Whole<Compute<T>> w;
  const Compute<T> hot_z = target.hot >= 0 ? target.hot_z : Compute<T>(-INFINITY);
  w.s = thread_statistics<kForm, T>(team, row, target.mass, call.logit, hot_z, call.wants_first(), first);
  if constexpr (kForm == Form::kSpread) {
    w.hot = sum_indices(team, grid, call, number(), w.s.m);
    // The row's other blocks read what this one has stored for its indices.
    if (call.per_row > 0) team.publish();
  }
  add_up<kForm>(team, w.s, w.hot);
  w.find();
  const int64_t argmax = call.wants_first() ? first.template of_row<Compute<T>>(team) : Index(0);
  const int64_t own = number();
  if (own < grid.rows) write_results<T, kForm>(team, call, target, w, own, argmax);
  if (call.grad.data != nullptr) write_gradient<T, kForm, Index>(row, call, target, out, w, own);
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
  // As in cross_entropy.cu: a kept row is read at the same time as its target.
  constexpr bool kAtOnce = Row::kKeeps && kForm != Form::kSpread;
  if (kAtOnce) row.load(x, -INFINITY);
  const auto target = target_of<T, kForm, Index>(grid, call, number);
  if constexpr (!kAtOnce) {
    if (!target.counts) x.classes = 0;
    row.load(x, -INFINITY);
  }
  team.meet();
  const Span<T> out = call.grad.data != nullptr ? span_of<T>(call.grad, grid, number) : Span<T>{};
  row_losses_row<T, kForm, Index>(team, row, grid, call, target, out, [&] { return team.row(); });
  clear_others(grid, call, team.row(), team.rank(), team.size());
}

template <class T, Form kForm, int kMost>
__global__ void row_losses_tile_kernel(Grid grid, RowLossCall<T> call, TileRows logits, TileRows grad) {
  const Tile<T, kMost> in(grid, logits), out(grid, grad);
  const int64_t number = in.row();
  typename Tile<T, kMost>::Asked words;
  in.ask(words);
  const auto target = target_of<T, kForm, int>(grid, call, number);
  in.keep(words);
  sync_block();
  TileRow<T, kMost> row(in, out, -INFINITY);
  out.replace(in);
  Alone<Compute<T>> team;
  row_losses_row<T, kForm, int>(team, row, grid, call, target, Span<T>{}, [&] { return number; });
  if (call.grad.data == nullptr) return;
  sync_block();
  out.store();
  clear_others(grid, call, number, 0, 1);
}

template <class T, Form kForm>
Outcome launch(const RowLossArgs& args, const DeviceStream& stream) {
  using Limits = RowLimits<T, kForm>;
  const RowLossCall<T> call = call_of<T>(args);
  const Launch setup =
      launch_of<T, Limits>(args.shape, args.rows, stream, {&args.logits, &args.probabilities, &args.grad},
                           Limits::kSpread ? call.own_weights() : nullptr);
  const Plan& plan = setup.plan;
  if (plan.way == Way::kTile) {
    constexpr int kLeast = kForm == Form::kPlain ? 16 : 32;
    const char* error = with_tile<T, kLeast>(args.shape, args.rows, 1, [&](auto most, const Dims& tiles) {
      return start(row_losses_tile_kernel<T, kForm, most()>, tiles, stream, setup.grid, call,
                   tile_rows<T>(args.logits, setup.grid), tile_rows<T>(args.grad, setup.grid));
    });
    return {error, plan.path};
  }
  const char* error = with_kernel<T, Limits>(plan, [&](auto kernel) {
    using K = decltype(kernel);
    return start(row_losses_kernel<T, kForm, K::kAccess, K::E>, setup.dims, stream, setup.grid, call);
  });
  return {error, plan.path};
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
