// SPDX-License-Identifier: Apache-2.0
// The gradient of row_losses for some classes of rows whose numbers are known (PartNumber). Every class is
// independent of the others then, so threads share the classes without waiting for each other. The formulas
// are those of row_losses.cu, and so are the bits, with two exceptions: several indices of a row are added up
// in another order than there, and 16-bit rows that are kept element by element have terms of more precision
// there. How a row is divided into parts never changes its bits.
#include "launch.cuh"
#include "row_gradient.cuh"

namespace softkern::cuda {
namespace {

// Enough classes for a thread that the numbers of the row, which each thread computes, take little of its
// time.
constexpr int kThreads = 256, kClassesOfThread = 64;

int64_t warps_of(int64_t classes) {
  const int64_t warps = (classes + kWarp * kClassesOfThread - 1) / (kWarp * kClassesOfThread);
  return warps < 1 ? 1 : warps;
}

/// As many registers as two of these blocks leave each other. float64 needs more: those of one and a half.
template <class T>
struct PartLimits : OneTensor<T> {
  static constexpr int kMostThreads = sizeof(T) == 8 ? kThreads / 2 * 3 : 2 * kThreads;
  static constexpr int kMostWithElements = kMostThreads;
};

/// The threads that share a row: some neighbouring warps of the grid.
struct WarpsOfRow {
  int64_t row;
  int first, lanes;

  explicit SK_INLINE WarpsOfRow(int64_t warps) {
    const int thread = static_cast<int>(threadIdx.x);
    const int64_t warp = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + thread / kWarp;
    row = warp / warps;
    first = static_cast<int>(warp % warps) * kWarp + thread % kWarp;
    lanes = static_cast<int>(warps) * kWarp;
  }
  SK_INLINE int rank() const { return first; }
  SK_INLINE int size() const { return lanes; }
};

/// What all indices of a row add up to, by one warp. Stores the z of those whose class the thread has: in
/// place, the gradient takes the place of the logits.
template <class T, class Row>
SK_INLINE HotSums<Compute<T>> sum_all_indices(const Row& row, const Grid& grid, const RowLossCall<T>& call,
                                              int64_t number) {
  using A = Compute<T>;
  A sums[2] = {0, 0};
  const int64_t begin = number * call.per_row, end = number < grid.rows ? begin + call.per_row : begin;
  for (int64_t i = begin + static_cast<int>(threadIdx.x) % kWarp; i < end; i += kWarp) {
    call.check(call.target.of(i));
    sums[0] += call.hot_mass_at(i);
    sums[1] += number_at<A>(call.upstream.log_prob, i, 0);
  }
  Team<A>({TeamKind::kLanes, kWarp}).sum(sums);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t own = call.own_class(call.target.of(i));
    if (own >= 0 && row.has(own)) call.hot_z[i] = z_of<Form::kSpread>(grid, call, number, own);
  }
  HotSums<A> all;
  all.mass = sums[0], all.log_prob = sums[1];
  return all;
}

template <class T, Form kForm, Access kAccess>
__global__ void SK_BOUNDS(PartLimits<T>, kAccess, 0)
    row_parts_kernel(Grid grid, RowLossCall<T> call, const Compute<T>* whole, int64_t step, int64_t warps) {
  using A = Compute<T>;
  const WarpsOfRow team(warps);
  const int64_t number = team.row;
  // The z of the class index is the one that the numbers were computed with: another product of matrices may
  // have rounded it differently, and p - 1 would lose its digits.
  const auto target = target_of<T, kForm, int64_t>(grid, call, number,
                                                   [&](int64_t) { return whole[kPartHotZ * step + number]; });
  Whole<A> w;
  if (target.counts) {
    w.s.m = whole[kPartMax * step + number];
    w.s.ties = whole[kPartTies * step + number];
    w.s.rest = whole[kPartRest * step + number];
    w.s.terms_below = whole[kPartTermsBelow * step + number];
    w.s.mass = whole[kPartMass * step + number];
  }
  w.find();
  Span<T> x = span_of<T>(call.logits, grid, number);
  if (!target.counts) x.classes = 0;
  StreamedRow<T, kAccess, 1> row(team);
  row.load(x, -INFINITY);
  if constexpr (kForm == Form::kSpread) w.hot = sum_all_indices(row, grid, call, number);
  write_gradient<T, kForm, int64_t>(row, call, target, span_of<T>(call.grad, grid, number), w, number);
  clear_others(grid, call, number, team.rank(), team.size());
}

template <class T, Form kForm>
Outcome launch(const RowLossArgs& args, const DeviceStream& stream) {
  const int64_t warps = warps_of(args.classes), all = args.rows * warps;
  const Dims dims{(all + kThreads / kWarp - 1) / (kThreads / kWarp), kThreads};
  const Grid grid{args.rows, args.shape, {}};
  const RowLossCall<T> call = call_of<T>(args);
  const auto* whole = static_cast<const Compute<T>*>(args.whole.at);
  const bool vectors =
      all_take_vectors(args.shape, kVector<T>, {&args.logits, &args.probabilities, &args.grad},
                       kForm == Form::kSpread ? call.own_weights() : nullptr);
  const auto kernel =
      vectors ? row_parts_kernel<T, kForm, Access::kVectors> : row_parts_kernel<T, kForm, Access::kElements>;
  return {start(kernel, dims, stream, grid, call, whole, args.whole.step, warps), "part of a row"};
}

}  // namespace

template <class T>
Outcome row_parts(const RowLossArgs& args, const DeviceStream& stream) {
  switch (form_of(args)) {
    case Form::kPlain:
      return launch<T, Form::kPlain>(args, stream);
    case Form::kGeneral:
      return launch<T, Form::kGeneral>(args, stream);
    default:
      return launch<T, Form::kSpread>(args, stream);
  }
}

template Outcome row_parts<SOFTKERN_ELEMENT>(const RowLossArgs&, const DeviceStream&);

}  // namespace softkern::cuda
