// SPDX-License-Identifier: Apache-2.0
// How linear_cross_entropy computes a call: which products in which order, in pieces of which size.
//
//   fast   The forward computes logits, losses and gradients, some rows at a time: three products. It serves
//          upstream gradients of the reduced loss, which only scale these gradients.
//   lean   The forward computes logits and statistics, some rows at a time. The backward computes the logits
//          again, some classes at a time, and from them and the statistics the gradients: four products. It
//          serves every upstream gradient, as often as wanted, and needs the least memory.
//   reference  ATen's ops on all logits.
//
// Without gradients, fast and lean are the same single product.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../options.h"

namespace softkern {

/// The sizes of a call. rows: those that are not ignored; classes: those that are not padding.
struct LinearShape {
  int64_t rows, classes, features;
  int64_t compute_bytes, operand_bytes;  // per number
  bool narrows;                          // gradients of logits are multiplied in the dtype of the operands
  bool on_cpu;
};

struct LinearPlan {
  Plan plan;             // kFastPlan or kLeanPlan
  int64_t chunk_rows;    // the most rows whose logits are there at a time
  int64_t tile_classes;  // classes whose logits are there at a time in lean's backward
  // fast: rows whose gradients of logits wait for one product of the weight's gradient; 0: each chunk's are
  // multiplied at once
  int64_t kept_rows;
  // Of rows. Their sizes differ by at most one, since products of very few rows take other ways.
  int64_t chunks = 1;
};

/// Rows whose 16-bit gradients wait for one product, in the fast plan.
inline int64_t waiting_rows(const LinearPlan& plan, int64_t rows) {
  return std::min(rows, std::max(plan.kept_rows, plan.chunk_rows));
}

/// Whether fast serves the call: it is wanted, and can serve upstream gradients of a loss that is reduced,
/// but not of float16 inputs, whose gradients get their scale in backward. Sizes do not matter: which results
/// linear_cross_entropy_forward has must be known without them.
bool prefers_fast(const LinearOptions& options, int64_t needs, bool is_half);

/// The plan of a call with these gradients: options.plan, or what takes its place. Raises ValueError if
/// max_bytes is too small for every plan.
Plan chosen_plan(const LinearShape& shape, const LinearOptions& options, int64_t needs, bool is_half);

/// A plan's pieces: the largest ones that fit into max_bytes, or else the smallest.
LinearPlan pieces_of(Plan plan, const LinearShape& shape, const LinearOptions& options, int64_t needs);

/// Elements from one row of logits to the next: an odd number of pairs of cache lines. Rows start at a cache
/// line, also those of 16-bit gradients, and the rows of a block of a product do not all fall into the same
/// sets of a cache, as they would with a power of two.
constexpr int64_t row_pitch(int64_t columns) { return ((columns + 31) / 32 | 1) * 32; }
/// Rows that LogitsBuffer narrows in other memory.
constexpr int64_t spare_rows(int64_t rows) { return (rows + 15) / 16; }
/// Bytes of a LogitsBuffer without the spare rows, as a multiple of the compute type.
int64_t buffer_bytes(const LinearShape& shape, int64_t rows, int64_t columns, int64_t waiting);

/// Bytes of temporaries of a plan, beside inputs and results: at most so many are there at a time.
int64_t temporary_bytes(const LinearShape& shape, const LinearPlan& plan, int64_t needs);

}  // namespace softkern
