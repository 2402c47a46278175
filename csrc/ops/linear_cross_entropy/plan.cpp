// SPDX-License-Identifier: Apache-2.0
#include "plan.h"

#include <c10/util/Exception.h>

#include <algorithm>

#include "../ops.h"
#include "brgemm.h"
#include "products.h"

namespace softkern {
namespace {

// Sizes of pieces. Products of fewer rows read the weight too often: on two cores, products of 128 rows run
// at 0.85 of the speed of those of 512. Pieces of more bytes save little.
constexpr int64_t kLeastRows = 64, kMostRowsOnCpu = 512, kMostRowsOnGpu = 4096;
constexpr int64_t kFastBytes = int64_t{256} << 20, kLeanBytes = int64_t{128} << 20;
constexpr int64_t kTileBytes = int64_t{64} << 20, kLeastClasses = 128, kMostClasses = 16384;

constexpr int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/// The number of chunks of rows.
int64_t chunks_of(int64_t rows, int64_t most) { return std::max<int64_t>(1, (rows + most - 1) / most); }

int64_t default_rows(const LinearShape& s, Plan plan) {
  const int64_t bytes = plan == kFastPlan ? kFastBytes : kLeanBytes;
  // A part of the rows, so that a chunk is a small part of what all logits would take: with a sixth, less
  // than an eighth of what torch needs. bfloat16 matrices are packed for each chunk anew, so chunks are
  // larger; the 16-bit gradients of all rows stay with the fast plan anyway.
  const int64_t part = !s.narrows ? (s.rows + 5) / 6 : plan == kFastPlan ? s.rows : (s.rows + 1) / 2;
  const int64_t most = s.on_cpu ? std::min(kMostRowsOnCpu, part) : kMostRowsOnGpu;
  const int64_t fit = bytes / (row_pitch(s.classes) * s.compute_bytes) / 16 * 16;
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
    // A float32 sum of weight gradients takes as much memory as the 16-bit gradients of the logits of 2 H
    // rows. So up to 4 H rows, all rows together take no more than 2 H rows and the sum.
    const int64_t some = rounded_up(2 * s.features, rows);
    plan.kept_rows = s.rows <= 2 * some ? s.rows : some;
  }
  return plan;
}

}  // namespace

int64_t buffer_bytes(const LinearShape& s, int64_t rows, int64_t columns, int64_t waiting) {
  // Narrow gradients wait before the logits of the last piece, and then replace them.
  const int64_t before = std::max<int64_t>(0, waiting - rows);
  return row_pitch(columns) * (rows * s.compute_bytes + before * s.operand_bytes);
}

int64_t temporary_bytes(const LinearShape& s, const LinearPlan& plan, int64_t needs) {
  const int64_t chunk = std::min(plan.chunk_rows, s.rows);
  const auto buffer = [&](int64_t rows, int64_t columns, int64_t waiting) {
    const int64_t spare = waiting == 0 ? 0 : spare_rows(rows) * row_pitch(columns) * s.operand_bytes;
    return buffer_bytes(s, rows, columns, waiting) + spare;
  };
  // Operands in the compute type, where products need them so.
  const bool casts = s.operand_bytes != s.compute_bytes && !s.narrows;
  const auto operands = [&](int64_t rows) {
    return casts ? (rows + std::min(s.classes, kCastClasses)) * s.features * s.compute_bytes : 0;
  };
  // Copies of operands in the order that brgemm wants.
  const auto packed = [&](int64_t n) {
    return s.narrows && s.on_cpu ? std::min(n, cpu::kMostPackedK) * s.features * s.operand_bytes : 0;
  };
  const int64_t weight = s.classes * s.features * s.compute_bytes;
  const int64_t waiting = plan.plan == kFastPlan && needs != 0 && s.narrows ? waiting_rows(plan, s.rows) : 0;
  int64_t forward = buffer(chunk, s.classes, waiting) + operands(chunk);
  if (needs == 0) return forward;
  if (plan.plan == kFastPlan) {
    const bool sums = casts || (plan.kept_rows > 0 && plan.kept_rows < s.rows);
    if ((needs & kNeedsWeight) != 0 && sums) forward += weight + packed(plan.kept_rows);
    return forward;
  }
  int64_t backward =
      buffer(s.rows, std::min(plan.tile_classes, s.classes), s.narrows ? s.rows : 0) + operands(s.rows);
  if ((needs & kNeedsInput) != 0 && s.operand_bytes != s.compute_bytes) {
    backward += s.rows * s.features * s.compute_bytes + packed(plan.tile_classes);
  }
  return std::max(forward, backward);
}

bool prefers_fast(const LinearOptions& options, int64_t needs, bool is_half) {
  // The gradients of statistics need the logits again, after fast has computed gradients of the loss in vain.
  const bool statistics = (options.outputs & (kLogProb | kLse | kEntropy)) != 0;
  const bool wanted = options.plan == kFastPlan || (options.plan == kAutoPlan && !statistics);
  return wanted && needs != 0 && (options.outputs & kLoss) != 0 && options.reduction != kNone && !is_half;
}

Plan chosen_plan(const LinearShape& s, const LinearOptions& options, int64_t needs, bool is_half) {
  const bool fast = prefers_fast(options, needs, is_half);
  if (options.max_bytes < 0) return fast ? kFastPlan : kLeanPlan;
  const auto bytes = [&](Plan plan) { return temporary_bytes(s, pieces_of(plan, s, options, needs), needs); };
  if (fast && bytes(kFastPlan) <= options.max_bytes) return kFastPlan;
  const int64_t least = bytes(kLeanPlan);
  TORCH_CHECK_VALUE(least <= options.max_bytes, "linear_cross_entropy: max_bytes = ", options.max_bytes,
                    " is too small: ", s.rows, " rows of ", s.features, " features and ", s.classes,
                    " classes need ", least, " bytes");
  return kLeanPlan;
}

LinearPlan pieces_of(Plan plan, const LinearShape& s, const LinearOptions& options, int64_t needs) {
  const auto half = [](int64_t n, int64_t least) { return std::max(least, rounded_up(n / 2, least)); };
  const auto with = [&](int64_t rows, int64_t tile_classes) {
    return plan == kFastPlan ? fast_plan(s, rows, needs) : LinearPlan{kLeanPlan, rows, tile_classes, 0};
  };
  int64_t rows = options.chunk_rows > 0 ? rounded_up(options.chunk_rows, kLeastRows) : default_rows(s, plan);
  int64_t tile_classes = default_classes(s);
  LinearPlan pieces = with(rows, tile_classes);
  while (options.max_bytes >= 0 && temporary_bytes(s, pieces, needs) > options.max_bytes &&
         (rows > kLeastRows || tile_classes > kLeastClasses)) {
    rows = half(rows, kLeastRows);
    tile_classes = half(tile_classes, kLeastClasses);
    pieces = with(rows, tile_classes);
  }
  pieces.chunks = chunks_of(s.rows, pieces.chunk_rows);
  pieces.chunk_rows = (s.rows + pieces.chunks - 1) / pieces.chunks;
  return pieces;
}

}  // namespace softkern
