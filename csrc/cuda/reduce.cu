// SPDX-License-Identifier: Apache-2.0
// Sums over the rows: of the targets' weights, before the losses, and of the losses. Sums are made in double,
// without atomics, in an order that depends on the number of rows only.
#include "api.h"
#include "memory.cuh"
#include "targets.cuh"
#include "team.cuh"

namespace softkern::cuda {
namespace {

// A thread loads kAtOnce rows before it adds the first one, so that it waits for memory once.
constexpr int kThreads = 1024, kAtOnce = 8;
constexpr int64_t kRowsOfRound = kThreads * kAtOnce;
// Two rounds of one block take as long as a second launch.
constexpr int64_t kRowsAlone = 2 * kRowsOfRound;
// For more rows there are as many blocks as needed for one round each, at most kMostParts.
constexpr int64_t kMostParts = 1024;

int64_t parts_of(int64_t rows) {
  if (rows <= kRowsAlone) return 1;
  return std::min(ceil_div(rows, kRowsOfRound), kMostParts);
}

/// Rows r, r + kThreads, ... of a block's part.
struct Part {
  int64_t first, end;

  /// Calls f(at(r)) for each row r of the part, and f(none) after its end.
  template <class At, class Found, class F>
  SK_INLINE void each(At at, Found none, F f) const {
    for (int64_t r = first; r < end; r += kRowsOfRound) {
      Found v[kAtOnce];
      SK_UNROLL
      for (int j = 0; j < kAtOnce; ++j) v[j] = r + j * kThreads < end ? at(r + j * kThreads) : none;
      SK_UNROLL
      for (int j = 0; j < kAtOnce; ++j) f(v[j]);
    }
  }
  SK_INLINE explicit Part(int64_t rows) {
    const int64_t blocks = static_cast<int64_t>(gridDim.x);
    const int64_t size = (rows + blocks - 1) / blocks;
    const int64_t start = static_cast<int64_t>(blockIdx.x) * size;
    first = start + static_cast<int>(threadIdx.x);
    end = start + size < rows ? start + size : rows;
  }
};

/// All threads of a block, which add up so many sums.
constexpr TeamShape whole_block(int sums) { return {TeamKind::kBlock, kThreads, 1, sums}; }

struct FloatOrDouble {
  void* at;  // null: none
  bool in_double;
  SK_INLINE void set(double value) const {
    if (at == nullptr) return;
    if (in_double) {
      *static_cast<double*>(at) = value;
    } else {
      *static_cast<float*>(at) = static_cast<float>(value);
    }
  }
};

/// The weights of the targets that are not ignored: their sum, and how many of them are not 0.
struct WeightSums {
  IndexTarget target;
  const void* weight;
  ElementType weight_type;
  int64_t classes;

  SK_INLINE void add(double* sums, int64_t y) const {
    // Skips targets that are neither a class nor ignored. The kernel of the losses stops the device for them.
    if (y == target.ignore_index || y < 0 || y >= classes) return;
    const double w = weight != nullptr ? element(weight, weight_type, y) : 1.0;
    sums[0] += w;
    sums[1] += w != 0 ? 1.0 : 0.0;
  }
  /// If all weights are 0, there is no mean: it is 0/0, even if label smoothing alone would make it x/0.
  static SK_INLINE double mass_of(const double* sums) {
    return sums[1] == 0 ? static_cast<double>(NAN) : sums[0];
  }
};

/// Before the losses.
struct Mass {
  static constexpr int kSums = 2;
  WeightSums weights;
  double* mass;
  FloatOrDouble factor;

  SK_INLINE void add(const Part& part, double (&sums)[kSums]) const {
    part.each([&](int64_t r) { return weights.target.of(r); }, weights.target.ignore_index,
              [&](int64_t y) { weights.add(sums, y); });
  }
  SK_INLINE void store(const double (&sums)[kSums]) const {
    *mass = WeightSums::mass_of(sums);
    factor.set(1 / *mass);
  }
};

/// The loss and grad_scale, from the sum of the losses. kWithWeights: and from the sum of the weights.
template <bool kWithWeights>
struct Loss {
  static constexpr int kSums = kWithWeights ? 3 : 1;
  const void* losses;
  bool in_double;
  WeightSums weights;
  double divisor;
  const double* mass;
  double storage;
  const float* stored;
  void* loss;
  ElementType loss_type;
  FloatOrDouble grad_scale;

  struct Row {
    double loss;
    int64_t y;
  };
  SK_INLINE double loss_of(int64_t row) const {
    return in_double ? static_cast<const double*>(losses)[row]
                     : static_cast<double>(static_cast<const float*>(losses)[row]);
  }
  SK_INLINE void add(const Part& part, double (&sums)[kSums]) const {
    if constexpr (kWithWeights) {
      part.each([&](int64_t r) { return Row{loss_of(r), weights.target.of(r)}; },
                Row{0, weights.target.ignore_index},
                [&](const Row& row) {
                  sums[0] += row.loss;
                  weights.add(sums + 1, row.y);
                });
    } else {
      part.each([&](int64_t r) { return loss_of(r); }, 0.0, [&](double v) { sums[0] += v; });
    }
  }
  SK_INLINE void store(const double (&sums)[kSums]) const {
    double by = mass != nullptr ? *mass : divisor;
    if constexpr (kWithWeights) by = WeightSums::mass_of(sums + 1);
    const double value = sums[0] / by;
    // 16-bit types are rounded to float first, as a sum in float would be.
    switch (loss_type) {
      case kDouble:
        *static_cast<double*>(loss) = value;
        break;
      case kBFloat16:
        *static_cast<BFloat16*>(loss) = narrow<BFloat16>(static_cast<float>(value));
        break;
      case kHalf:
        *static_cast<Half*>(loss) = narrow<Half>(static_cast<float>(value));
        break;
      default:
        *static_cast<float*>(loss) = static_cast<float>(value);
    }
    const double size = stored != nullptr ? static_cast<double>(*stored) : storage;
    grad_scale.set(size == 0 ? 1.0 : 1 / (by * size));
  }
};

/// Number k of part p is at scratch[p * kSums + k].
template <class Of>
SK_INLINE void finish(const Of& of, double (&sums)[Of::kSums], double* scratch) {
  Team<double> team(whole_block(Of::kSums));
  team.sum(sums);
  if (threadIdx.x != 0) return;
  if (gridDim.x == 1) {
    of.store(sums);
  } else {
    SK_UNROLL
    for (int k = 0; k < Of::kSums; ++k) scratch[blockIdx.x * Of::kSums + k] = sums[k];
  }
}

template <class Of>
__global__ void __launch_bounds__(kThreads) sum_kernel(Of of, int64_t rows, double* scratch) {
  follow_previous_kernel();
  double sums[Of::kSums] = {};
  of.add(Part(rows), sums);
  finish(of, sums, scratch);
}

template <class Of>
__global__ void __launch_bounds__(kThreads) merge_kernel(Of of, int64_t parts, double* scratch) {
  follow_previous_kernel();
  double sums[Of::kSums] = {};
  for (int64_t p = static_cast<int>(threadIdx.x); p < parts; p += kThreads) {
    SK_UNROLL
    for (int k = 0; k < Of::kSums; ++k) sums[k] += scratch[p * Of::kSums + k];
  }
  finish(of, sums, scratch);
}

template <class Of>
const char* add_up(const Of& of, int64_t rows, double* scratch, const DeviceStream& stream) {
  constexpr size_t kShared = team_bytes<double>(whole_block(Of::kSums), kThreads);
  const int64_t parts = parts_of(rows);
  const char* error = start(sum_kernel<Of>, {parts, kThreads, 1, kShared}, stream, of, rows, scratch);
  if (error != nullptr || parts == 1) return error;
  return start(merge_kernel<Of>, {1, kThreads, 1, kShared}, stream.after_kernel(), of, parts, scratch);
}

WeightSums weight_sums(const TargetWeights& of) {
  return {{of.target, of.target_type, of.ignore_index}, of.weight, of.weight_type, of.classes};
}

template <bool kWithWeights>
const char* reduce(const ReduceArgs& args, const DeviceStream& stream) {
  const Loss<kWithWeights> loss{args.losses,
                                args.in_double,
                                weight_sums(args.weights),
                                args.divisor,
                                args.mass,
                                args.storage,
                                args.stored,
                                args.loss,
                                args.loss_type,
                                {args.grad_scale, args.in_double}};
  return add_up(loss, args.rows, args.scratch, stream);
}

}  // namespace

int64_t sum_scratch(int64_t rows) {
  const int64_t parts = parts_of(rows);
  return parts > 1 ? Loss<true>::kSums * parts : 0;
}

const char* find_mass(const MassArgs& args, const DeviceStream& stream) {
  const Mass mass{weight_sums(args.weights), args.mass, {args.factor, args.factor_in_double}};
  return add_up(mass, args.rows, args.scratch, stream);
}

const char* reduce_losses(const ReduceArgs& args, const DeviceStream& stream) {
  return args.by_weight ? reduce<true>(args, stream) : reduce<false>(args, stream);
}

}  // namespace softkern::cuda
