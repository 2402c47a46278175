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
  int64_t chunk_rows;    // rows whose logits are there at a time
  int64_t tile_classes;  // classes whose logits are there at a time in lean's backward
  int64_t kept_rows;  // fast: rows whose gradients of logits wait for one product of the weight's gradient;
                      // 0: each chunk's are multiplied at once
};

/// Whether fast can serve the call's gradients: of a loss that is reduced, and not of float16 inputs, whose
/// gradients get their scale in backward.
bool can_be_fast(const LinearOptions& options, bool is_half);

/// lean with the largest pieces that fit into max_bytes, or else the smallest.
LinearPlan lean_plan(const LinearShape& shape, const LinearOptions& options, int64_t needs);

/// Raises ValueError if no plan fits into max_bytes. needs: `Needs` of the call.
LinearPlan make_linear_plan(const LinearShape& shape, const LinearOptions& options, int64_t needs,
                            bool is_half);

/// Bytes of temporaries of a plan, beside inputs and results: at most so many are there at a time.
int64_t temporary_bytes(const LinearShape& shape, const LinearPlan& plan, int64_t needs);

}  // namespace softkern
