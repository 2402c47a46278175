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
constexpr int kThreads = 512, kAtOnce = 8;
// One block adds up to kRowsAlone rows. For more rows there are as many blocks as needed, at most kMostParts.
constexpr int64_t kRowsAlone = kThreads * kAtOnce, kMostParts = 1024;

int64_t parts_of(int64_t rows) {
  const int64_t parts = (rows + kRowsAlone - 1) / kRowsAlone;
  return parts < 1 ? 1 : parts > kMostParts ? kMostParts : parts;
}

/// Rows r, r + kThreads, ... of a block's part.
struct Part {
  int64_t first, end;

  /// Calls f(at(r)) for each row r of the part, and f(none) after its end.
  template <class At, class Found, class F>
  SK_INLINE void each(At at, Found none, F f) const {
    for (int64_t r = first; r < end; r += kRowsAlone) {
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

/// The team of all threads of a block, for sums.
struct WholeBlock : Team<double> {
  SK_INLINE WholeBlock() : Team<double>({TeamKind::kBlock, kThreads}) {}
};
constexpr size_t kSharedBytes = team_bytes<double>({TeamKind::kBlock, kThreads}, kThreads);

SK_INLINE bool is_first_thread() { return threadIdx.x == 0; }

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

/// If all weights are 0, there is no mean: it is 0/0, even if label smoothing alone would make it x/0.
SK_INLINE void store_mass(const double (&sums)[2], double* mass, const FloatOrDouble& factor) {
  *mass = sums[1] == 0 ? static_cast<double>(NAN) : sums[0];
  factor.set(1 / *mass);
}

/// Sums the weights of the targets that are not ignored, and counts the nonzero ones.
__global__ void __launch_bounds__(kThreads)
    mass_kernel(IndexTarget target, const void* weight, ElementType weight_type, int64_t rows,
                int64_t classes, double* mass, FloatOrDouble factor, double* scratch) {
  const Part part(rows);
  double sums[2] = {0, 0};
  part.each([&](int64_t r) { return target.of(r); }, target.ignore_index,
            [&](int64_t y) {
              // Skips targets that are neither a class nor ignored. The kernel of the losses stops the device
              // for them.
              if (y == target.ignore_index || y < 0 || y >= classes) return;
              const double w = weight != nullptr ? element(weight, weight_type, y) : 1.0;
              sums[0] += w;
              sums[1] += w != 0 ? 1.0 : 0.0;
            });
  WholeBlock team;
  team.sum(sums);
  if (!is_first_thread()) return;
  if (gridDim.x == 1) {
    store_mass(sums, mass, factor);
  } else {
    scratch[2 * blockIdx.x] = sums[0];
    scratch[2 * blockIdx.x + 1] = sums[1];
  }
}

__global__ void __launch_bounds__(kThreads)
    merge_mass_kernel(const double* scratch, int64_t parts, double* mass, FloatOrDouble factor) {
  double sums[2] = {0, 0};
  for (int64_t p = static_cast<int>(threadIdx.x); p < parts; p += kThreads) {
    sums[0] += scratch[2 * p];
    sums[1] += scratch[2 * p + 1];
  }
  WholeBlock team;
  team.sum(sums);
  if (is_first_thread()) store_mass(sums, mass, factor);
}

/// Makes the loss and grad_scale from the sum of the losses.
struct Result {
  double divisor;
  const double* mass;
  double storage;
  const float* stored;
  void* loss;
  ElementType loss_type;
  FloatOrDouble grad_scale;

  SK_INLINE void store(double total) const {
    const double by = mass != nullptr ? *mass : divisor;
    const double value = total / by;
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

__global__ void __launch_bounds__(kThreads)
    loss_kernel(const void* losses, bool in_double, int64_t rows, Result result, double* scratch) {
  const Part part(rows);
  double sums[1] = {0};
  const auto loss = [&](int64_t r) {
    return in_double ? static_cast<const double*>(losses)[r]
                     : static_cast<double>(static_cast<const float*>(losses)[r]);
  };
  part.each(loss, 0.0, [&](double v) { sums[0] += v; });
  WholeBlock team;
  team.sum(sums);
  if (!is_first_thread()) return;
  if (gridDim.x == 1) {
    result.store(sums[0]);
  } else {
    scratch[blockIdx.x] = sums[0];
  }
}

__global__ void __launch_bounds__(kThreads)
    merge_loss_kernel(const double* scratch, int64_t parts, Result result) {
  double sums[1] = {0};
  for (int64_t p = static_cast<int>(threadIdx.x); p < parts; p += kThreads) sums[0] += scratch[p];
  WholeBlock team;
  team.sum(sums);
  if (is_first_thread()) result.store(sums[0]);
}

}  // namespace

int64_t mass_scratch(int64_t rows) { return parts_of(rows) > 1 ? 2 * parts_of(rows) : 0; }
int64_t reduce_scratch(int64_t rows) { return parts_of(rows) > 1 ? parts_of(rows) : 0; }

const char* find_mass(const MassArgs& args, const DeviceStream& stream) {
  const int64_t parts = parts_of(args.rows);
  const FloatOrDouble factor{args.factor, args.factor_in_double};
  const char* error = start(mass_kernel, {parts, kThreads, 1, kSharedBytes}, stream,
                            IndexTarget{args.target, args.target_type, args.ignore_index}, args.weight,
                            args.weight_type, args.rows, args.classes, args.mass, factor, args.scratch);
  if (error != nullptr || parts == 1) return error;
  return start(merge_mass_kernel, {1, kThreads, 1, kSharedBytes}, stream,
               static_cast<const double*>(args.scratch), parts, args.mass, factor);
}

const char* reduce_losses(const ReduceArgs& args, const DeviceStream& stream) {
  const int64_t parts = parts_of(args.rows);
  const Result result{args.divisor,
                      args.mass,
                      args.storage,
                      args.stored,
                      args.loss,
                      args.loss_type,
                      {args.grad_scale, args.in_double}};
  const char* error = start(loss_kernel, {parts, kThreads, 1, kSharedBytes}, stream, args.losses,
                            args.in_double, args.rows, result, args.scratch);
  if (error != nullptr || parts == 1) return error;
  return start(merge_loss_kernel, {1, kThreads, 1, kSharedBytes}, stream,
               static_cast<const double*>(args.scratch), parts, result);
}

}  // namespace softkern::cuda
