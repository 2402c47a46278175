// SPDX-License-Identifier: Apache-2.0
// The kernels that softmax and log_softmax share. The parameter Op says what is computed in a row.
#pragma once

#include "launch.cuh"

namespace softkern::cuda {
namespace {

template <class Op, class T, class Team, class Row>
SK_INLINE void forward_row(Team& team, Row& row, const Span<T>& out) {
  using A = Compute<T>;
  // A logarithm close to 0 needs the terms of the maximum separate from the others. A quotient of 16 bits
  // does not: the sum of all terms has more digits than the result.
  constexpr bool kTies = !(Op::kOfTerms && sizeof(T) == 2);
  const Stats<A> s = statistics<Op::kOfTerms, kTies, T>(team, row, NoMass());
  const A of_row = Op::row_number(s) * (Op::kOfTerms ? TermsOf<T>::kUnit : A(1));
  const TermsOf<T> terms(finite(s.m));
  row.write(out, [&](auto& v, auto) {  // 3 write
    for (A& x : v) {
      if constexpr (Op::kOfTerms) {
        x = Op::value(Row::kHoldsTerms ? x : terms.of(x), of_row);
      } else {
        x = Op::value(x, s.m, of_row);
      }
    }
  });
}

template <class Op, class T, Access kAccess, int E>
__global__ void SK_BOUNDS(OneTensor<T>, kAccess, E) forward_kernel(Grid grid, Rows input, Rows output) {
  TeamOf<OneTensor<T>, T, E> team(grid.team);
  typename RowOf<T, kAccess, E>::type row(team);
  row.load(span_of<T>(input, grid, team.row()), -INFINITY);
  team.meet();
  forward_row<Op, T>(team, row, span_of<T>(output, grid, team.row()));
}

template <class Op, class T, Access kAccess>
__global__ void SK_SHARED_BOUNDS(T) forward_shared_kernel(Grid grid, Rows input, Rows output) {
  Team<Compute<T>, Kinds::kBlocks> team(grid.team);
  SharedRow<T, kAccess> row(team, grid, -INFINITY);
  const int64_t step = team.rows_at_a_time();
  int64_t number = team.row();
  row.ask(span_of<T>(input, grid, number));
  team.meet();
  for (; number < grid.rows; number += step) {
    row.arrive();
    row.set_next(span_of<T>(input, grid, number + step), false);
    forward_row<Op, T>(team, row, span_of<T>(output, grid, number));
  }
}

template <class Op, class T>
__global__ void SK_SHARED_BOUNDS(T) forward_columns_kernel(Grid grid, ColumnRows input, ColumnRows output) {
  ColumnTeam<T> team(grid.team);
  const ColumnTile<T> in(grid, input), out(grid, output);
  SharedColumn<T> row(team, grid, in);
  each_tile<T>(grid, [&](int64_t first) {
    in.ask(first);
    in.arrive();
    forward_row<Op, T>(team, row, Span<T>{});
    out.store(first);
  });
}

template <class Op, class T, int kMost>
__global__ void forward_tile_kernel(Grid grid, TileRows input, TileRows output) {
  const Tile<T, kMost> in(grid, input), out(grid, output);
  in.load();
  sync_block();
  TileRow<T, kMost> row(in, out, -INFINITY);
  out.replace(in);
  Alone<Compute<T>> team;
  forward_row<Op, T>(team, row, Span<T>{});
  sync_block();
  out.store();
}

template <class Op, class T>
Outcome forward(const ForwardArgs& args, const DeviceStream& stream) {
  const Launch setup = launch_of<T, OneTensor<T>>(args.shape, args.rows, stream, {&args.input, &args.output});
  const Plan& plan = setup.plan;
  if (plan.way == Way::kTile) {
    const char* error = with_tile<T>(args.shape, args.rows, 1, [&](auto most, const Dims& tiles) {
      return start(forward_tile_kernel<Op, T, most()>, tiles, stream, setup.grid,
                   tile_rows<T>(args.input, setup.grid), tile_rows<T>(args.output, setup.grid));
    });
    return {error, plan.path};
  }
  if (plan.way == Way::kShared) {
    const char* error = with_access(plan, [&](auto access) {
      return start(forward_shared_kernel<Op, T, access>, setup.dims, stream, setup.grid, args.input,
                   args.output);
    });
    return {error, plan.path};
  }
  if (plan.way == Way::kSharedColumns) {
    return {start(forward_columns_kernel<Op, T>, setup.dims, stream, setup.grid,
                  column_rows<T>(args.input, setup.grid), column_rows<T>(args.output, setup.grid)),
            plan.path};
  }
  const char* error = with_kernel<T, OneTensor<T>>(plan, [&](auto kernel) {
    using K = decltype(kernel);
    return start(forward_kernel<Op, T, K::kAccess, K::E>, setup.dims, stream, setup.grid, args.input,
                 args.output);
  });
  return {error, plan.path};
}

template <class Op, class T, class Team, class Row>
SK_INLINE void backward_row(Team& team, Row& g, Row& y, const Span<T>& out) {
  using A = Compute<T>;
  A total[1] = {0};
  y.each_with(g, [&](auto& vy, auto& vg) {
    SK_UNROLL
    for (int i = 0; i < static_cast<int>(sizeof(vy) / sizeof(A)); ++i) total[0] += Op::summand(vg[i], vy[i]);
  });
  team.sum(total);
  y.write_with(g, out, [&](auto& vy, auto& vg) {  // 3 write
    SK_UNROLL
    for (int i = 0; i < static_cast<int>(sizeof(vy) / sizeof(A)); ++i) {
      vy[i] = Op::template gradient<T>(vg[i], vy[i], total[0]);
    }
  });
}

template <class Op, class T, Access kAccess, int E>
__global__ void SK_BOUNDS(TwoTensors<T>, kAccess, E)
    backward_kernel(Grid grid, Rows grad_output, Rows output, Rows grad_input) {
  using Row = typename RowOf<T, kAccess, E, 2>::type;
  TeamOf<TwoTensors<T>, T, E> team(grid.team);
  Row g(team), y(team);
  g.load(span_of<T>(grad_output, grid, team.row()), 0);
  y.load(span_of<T>(output, grid, team.row()), 0);
  team.meet();
  backward_row<Op, T>(team, g, y, span_of<T>(grad_input, grid, team.row()));
}

template <class Op, class T, Access kAccess>
__global__ void SK_SHARED_BOUNDS(T)
    backward_shared_kernel(Grid grid, Rows grad_output, Rows output, Rows grad_input) {
  Team<Compute<T>, Kinds::kBlocks> team(grid.team);
  SharedRow<T, kAccess> g(team, grid, 0, 0), y(team, grid, 0, 1);
  const int64_t step = team.rows_at_a_time();
  int64_t number = team.row();
  g.ask(span_of<T>(grad_output, grid, number));
  y.ask(span_of<T>(output, grid, number));
  team.meet();
  for (; number < grid.rows; number += step) {
    g.arrive();
    y.arrive();
    g.set_next(span_of<T>(grad_output, grid, number + step), false);
    y.set_next(span_of<T>(output, grid, number + step), false);
    backward_row<Op, T>(team, g, y, span_of<T>(grad_input, grid, number));
  }
}

template <class Op, class T>
__global__ void SK_SHARED_BOUNDS(T)
    backward_columns_kernel(Grid grid, ColumnRows grad_output, ColumnRows output, ColumnRows grad_input) {
  ColumnTeam<T> team(grid.team);
  const ColumnTile<T> g_in(grid, grad_output, 0), y_in(grid, output, 1), out(grid, grad_input, 1);
  SharedColumn<T> g(team, grid, g_in), y(team, grid, y_in);
  each_tile<T>(grid, [&](int64_t first) {
    g_in.ask(first);
    y_in.ask(first);
    y_in.arrive();
    backward_row<Op, T>(team, g, y, Span<T>{});
    out.store(first);
  });
}

template <class Op, class T, int kMost>
__global__ void backward_tile_kernel(Grid grid, TileRows grad_output, TileRows output, TileRows grad_input) {
  const Tile<T, kMost> g_in(grid, grad_output, 0), y_in(grid, output, 1), out(grid, grad_input, 1);
  g_in.load();
  y_in.load();
  sync_block();
  TileRow<T, kMost> g(g_in, g_in, 0), y(y_in, out, 0);
  out.replace(y_in);
  Alone<Compute<T>> team;
  backward_row<Op, T>(team, g, y, Span<T>{});
  sync_block();
  out.store();
}

template <class Op, class T>
Outcome backward(const BackwardArgs& args, const DeviceStream& stream) {
  const Launch setup = launch_of<T, TwoTensors<T>>(args.shape, args.rows, stream,
                                                   {&args.grad_output, &args.output, &args.grad_input});
  const Plan& plan = setup.plan;
  if (plan.way == Way::kTile) {
    const char* error = with_tile<T>(args.shape, args.rows, 2, [&](auto most, const Dims& tiles) {
      return start(backward_tile_kernel<Op, T, most()>, tiles, stream, setup.grid,
                   tile_rows<T>(args.grad_output, setup.grid), tile_rows<T>(args.output, setup.grid),
                   tile_rows<T>(args.grad_input, setup.grid));
    });
    return {error, plan.path};
  }
  if (plan.way == Way::kShared) {
    const char* error = with_access(plan, [&](auto access) {
      return start(backward_shared_kernel<Op, T, access>, setup.dims, stream, setup.grid, args.grad_output,
                   args.output, args.grad_input);
    });
    return {error, plan.path};
  }
  if (plan.way == Way::kSharedColumns) {
    return {start(backward_columns_kernel<Op, T>, setup.dims, stream, setup.grid,
                  column_rows<T>(args.grad_output, setup.grid), column_rows<T>(args.output, setup.grid),
                  column_rows<T>(args.grad_input, setup.grid)),
            plan.path};
  }
  const char* error = with_kernel<T, TwoTensors<T>>(plan, [&](auto kernel) {
    using K = decltype(kernel);
    return start(backward_kernel<Op, T, K::kAccess, K::E>, setup.dims, stream, setup.grid, args.grad_output,
                 args.output, args.grad_input);
  });
  return {error, plan.path};
}

template <class Op, class T>
Outcome forward_on(const ForwardArgs& args, const DeviceStream& stream) {
  return with_clusters_that_fit(stream, [&](const DeviceStream& on) { return forward<Op, T>(args, on); });
}
template <class Op, class T>
Outcome backward_on(const BackwardArgs& args, const DeviceStream& stream) {
  return with_clusters_that_fit(stream, [&](const DeviceStream& on) { return backward<Op, T>(args, on); });
}

}  // namespace
}  // namespace softkern::cuda
