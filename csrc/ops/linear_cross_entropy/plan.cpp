// SPDX-License-Identifier: Apache-2.0
#include "plan.h"

#include <c10/util/Exception.h>

#include <algorithm>

#include "../ops.h"

namespace softkern {
namespace {

// Sizes of pieces. Products of fewer rows read the weight too often: on two cores, products of 128 rows run
// at 0.85 of the speed of those of 512. Pieces of more bytes save little.
constexpr int64_t kLeastRows = 64, kMostRowsOnCpu = 512, kMostRowsOnGpu = 4096;
constexpr int64_t kFastBytes = int64_t{256} << 20, kLeanBytes = int64_t{128} << 20;
constexpr int64_t kTileBytes = int64_t{64} << 20, kLeastClasses = 128, kMostClasses = 16384;

constexpr int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/// The rows of a chunk: of chunks of about equal size, since a product of very few rows takes other ways.
int64_t even_chunks(int64_t rows, int64_t most) {
  const int64_t chunks = std::max<int64_t>(1, (rows + most - 1) / std::max<int64_t>(1, most));
  return std::max<int64_t>(1, rounded_up((rows + chunks - 1) / chunks, 16));
}

int64_t default_rows(const LinearShape& s, int64_t bytes) {
  // A quarter of the rows, so that a chunk is a small part of what all logits would take.
  const int64_t most =
      s.on_cpu ? std::min(kMostRowsOnCpu, rounded_up(s.rows / 4, kLeastRows)) : kMostRowsOnGpu;
  const int64_t fit = bytes / std::max<int64_t>(1, s.classes * s.compute_bytes) / kLeastRows * kLeastRows;
  return std::max(kLeastRows, std::min(most, fit));
}

int64_t default_classes(const LinearShape& s) {
  const int64_t fit =
      kTileBytes / std::max<int64_t>(1, s.rows * s.compute_bytes) / kLeastClasses * kLeastClasses;
  return std::clamp(fit, kLeastClasses, kMostClasses);
}

/// fast with chunks of so many rows.
LinearPlan fast_plan(const LinearShape& s, int64_t rows, int64_t needs) {
  LinearPlan plan{kFastPlan, rows, 0, 0};
  if ((needs & kNeedsWeight) != 0 && s.narrows) {
    // The rows' gradients of logits take as much memory as a float32 sum of weight gradients if there are
    // twice as many rows as features; then they are multiplied, and added to that sum.
    plan.kept_rows = std::min(s.rows, rounded_up(2 * s.features, rows));
  }
  return plan;
}

}  // namespace

bool can_be_fast(const LinearOptions& options, bool is_half) {
  return (options.outputs & kLoss) != 0 && options.reduction != kNone && !is_half;
}

int64_t temporary_bytes(const LinearShape& s, const LinearPlan& plan, int64_t needs) {
  const int64_t chunk = std::min(plan.chunk_rows, s.rows) * s.classes;
  // Operands in the compute type, where products need them so.
  const bool casts = s.operand_bytes != s.compute_bytes && !s.narrows;
  const auto operands = [&](int64_t rows) {
    return casts ? (rows + std::min<int64_t>(s.classes, 4096)) * s.features * s.compute_bytes : 0;
  };
  const int64_t weight = s.classes * s.features * s.compute_bytes;
  int64_t forward = chunk * s.compute_bytes + operands(std::min(plan.chunk_rows, s.rows));
  if (needs == 0) return forward;
  if (plan.plan == kFastPlan) {
    if (s.narrows) forward += std::max(chunk, plan.kept_rows * s.classes) * s.operand_bytes;
    const bool sums = casts || (plan.kept_rows > 0 && plan.kept_rows < s.rows);
    if ((needs & kNeedsWeight) != 0 && sums) forward += weight;
    return forward;
  }
  const int64_t tile = s.rows * std::min(plan.tile_classes, s.classes);
  int64_t backward = tile * (s.compute_bytes + (s.narrows ? s.operand_bytes : 0)) + operands(s.rows);
  if ((needs & kNeedsInput) != 0 && s.operand_bytes != s.compute_bytes) {
    backward += s.rows * s.features * s.compute_bytes;
  }
  return std::max(forward, backward);
}

namespace {

bool fits(const LinearShape& s, const LinearPlan& plan, const LinearOptions& options, int64_t needs) {
  return options.max_bytes < 0 || temporary_bytes(s, plan, needs) <= options.max_bytes;
}

int64_t chunk_rows(const LinearShape& s, const LinearOptions& options, int64_t bytes) {
  return options.chunk_rows > 0 ? rounded_up(options.chunk_rows, kLeastRows) : default_rows(s, bytes);
}

/// Half of n, a multiple of `least`.
int64_t smaller(int64_t n, int64_t least) { return std::max(least, rounded_up(n / 2, least)); }

}  // namespace

LinearPlan lean_plan(const LinearShape& s, const LinearOptions& options, int64_t needs) {
  LinearPlan plan{kLeanPlan, chunk_rows(s, options, kLeanBytes), default_classes(s), 0};
  while (!fits(s, plan, options, needs) &&
         (plan.chunk_rows > kLeastRows || plan.tile_classes > kLeastClasses)) {
    plan.chunk_rows = smaller(plan.chunk_rows, kLeastRows);
    plan.tile_classes = smaller(plan.tile_classes, kLeastClasses);
  }
  plan.chunk_rows = even_chunks(s.rows, plan.chunk_rows);
  return plan;
}

LinearPlan make_linear_plan(const LinearShape& s, const LinearOptions& options, int64_t needs, bool is_half) {
  // The gradients of statistics need the logits again, after fast has computed gradients of the loss in vain.
  const bool statistics = (options.outputs & (kLogProb | kLse | kEntropy)) != 0;
  const bool may_be_fast = needs != 0 && can_be_fast(options, is_half);
  if (may_be_fast && (options.plan == kFastPlan || (options.plan == kAutoPlan && !statistics))) {
    LinearPlan plan = fast_plan(s, chunk_rows(s, options, kFastBytes), needs);
    while (!fits(s, plan, options, needs) && plan.chunk_rows > kLeastRows) {
      plan = fast_plan(s, smaller(plan.chunk_rows, kLeastRows), needs);
    }
    if (fits(s, plan, options, needs)) {
      plan.chunk_rows = even_chunks(s.rows, plan.chunk_rows);
      return plan;
    }
  }
  const LinearPlan plan = lean_plan(s, options, needs);
  TORCH_CHECK_VALUE(fits(s, plan, options, needs), "linear_cross_entropy: max_bytes = ", options.max_bytes,
                    " is too small: these ", s.rows, " rows, ", s.classes, " classes and ", s.features,
                    " features need ", temporary_bytes(s, plan, needs), " bytes");
  return plan;
}

}  // namespace softkern
