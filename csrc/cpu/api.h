// SPDX-License-Identifier: Apache-2.0
// Arguments and results of the CPU kernels. Nothing here depends on torch: kernels compile in a second and
// run under sanitizers, valgrind and fuzzers without Python.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/elements.h"
#include "../common/options.h"
#include "../common/ran.h"

namespace softkern::cpu {

/// The rows [begin, end) of a call. `scratch` has Kernel::scratch_bytes bytes, for this range alone.
struct Range {
  int64_t begin;
  int64_t end;
  void* scratch;
};

/// Chunks begin at multiples of this number of classes.
constexpr int64_t kChunkClasses = 2048;

/// The classes [begin, end) of a row that several threads share. The steps of a kernel run one after the
/// other, each on all chunks of the row. A step leaves its results for the next step in `shared`, which has
/// Kernel::shared_bytes bytes for the row.
struct Chunk {
  int64_t row;
  int64_t begin, end;
  int index, count;
  void* shared;
};

struct ForwardArgs {
  Shape shape;
  Rows input;
  Rows output;
  bool stream;  // write with non-temporal stores, past the caches
};

struct BackwardArgs {
  Shape shape;
  Rows grad_output;
  Rows output;  // of the forward
  Rows grad_input;
  bool stream;
};

/// The compute type is double for kDouble and float for the other element types.
struct CrossEntropyArgs {
  Shape shape;
  Rows logits;
  const int64_t* target;  // class indices, one per row, in range or ignored; null with probabilities
  Rows probabilities;     // data null with class indices
  const void* weight;     // one per class, in the element type of the logits; or null
  CrossEntropyOptions options;
  void* loss;          // compute type, one per row
  Rows grad;           // data null: no gradient is needed
  double grad_factor;  // multiplies every gradient row
  bool stream;         // write the gradient past the caches; it must not overlap the logits
};

/// Losses and statistics of rows with softkern's own options, and their gradient (common/row_losses.h).
/// Results and upstream gradients have one number of the compute type a row, those of log_prob `per_row`;
/// null: not wanted, or 0.
struct RowLossArgs {
  Shape shape;    // of the logits, with all classes
  int64_t valid;  // classes that are read; the gradient of the others is 0
  // The logits may be those of some classes of the rows, from the class `first` on. Class indices and weights
  // are of whole rows, which have row_valid valid classes.
  int64_t first, row_valid;
  const void* whole;               // PartNumbers of whole rows: only the gradient is computed; or null
  void* parts;                     // PartNumbers of these logits; or null
  int64_t whole_step, parts_step;  // between two numbers of a row; those of the next row come next
  void* hot_z;                     // with `parts`: z of each index, 0 for other classes; or null
  Rows logits;
  const int64_t* target;     // `per_row` class indices a row, in range or ignored; null without indices
  int64_t per_row;           // 1: target may be ignored; otherwise none is
  const void* target_probs;  // compute type, one per index; null: indices have no mass if there are several
  Rows probabilities;        // data null without class probabilities
  const void* weight;        // one per class, in the element type of the logits; or null
  const void* row_weight;    // compute type; or null
  RowOptions options;
  void *loss, *log_prob, *lse, *entropy;
  int64_t* argmax;  // the first maximum, or the first NaN
  bool* correct;
  Rows grad;           // data null: no gradient is wanted
  double grad_factor;  // times of_loss: the upstream gradient of a row's loss
  const void *of_loss, *of_log_prob, *of_lse, *of_entropy;  // upstream gradients; of_loss null: 1
  bool stream;  // write the gradient past the caches; it must not overlap the logits
};

/// The numbers of whole rows from those of their parts, and the results from them (common/parts.h).
struct RowMergeArgs {
  const void* parts;  // PartNumbers: that of row r is at [number * number_step + part * node_step + r]
  int64_t number_step, node_step, nodes;
  const void* hot_z;  // of whole rows, `per_row` a row; null: the numbers have it
  // Without logits. `parts` is where the merged numbers go.
  RowLossArgs rows;
};

/// output row r = input row r * factor[r * factor_step]. `output` may be the same memory as `input`.
struct ScaleArgs {
  Shape shape;
  Rows input;
  Rows output;
  const void* factor;   // compute type
  int64_t factor_step;  // 0: one factor for all rows
  bool stream;
};

/// mass[r] = the sum over classes of |probability|.
struct MassArgs {
  Shape shape;
  Rows probabilities;
  void* mass;  // compute type, one per row
  static constexpr bool stream = false;
};

/// An op on whole rows, and on chunks of rows that threads share.
template <class Args>
struct Kernel {
  Ran (*rows)(const Args&, Range);
  size_t (*scratch_bytes)(const Args&, int64_t rows);  // for a range of this many rows
  Ran (*chunk)(const Args&, const Chunk&, int step) = nullptr;
  int steps = 0;
  size_t (*shared_bytes)(const Args&, int chunks) = nullptr;  // 0: threads share no row of this call
};

struct TargetCounts {
  int64_t outside;  // neither a class nor ignored
  int64_t counted;  // not ignored
};

/// Kernels of one element type.
struct Kernels {
  Kernel<ForwardArgs> softmax;
  Kernel<ForwardArgs> log_softmax;
  Kernel<BackwardArgs> softmax_backward;
  Kernel<BackwardArgs> log_softmax_backward;
  Kernel<CrossEntropyArgs> cross_entropy;
  Kernel<RowLossArgs> row_losses;
  Kernel<RowMergeArgs> row_merge;
  Kernel<ScaleArgs> scale;
  Kernel<MassArgs> mass;  // for float16 alone, whose gradients are stored scaled
  double (*sum_losses)(const void* losses, int64_t n);  // losses of the compute type
  TargetCounts (*count_targets)(const int64_t* target, int64_t rows, int64_t classes, int64_t ignore_index);
};

struct KernelTable {
  const char* isa;
  const Kernels* by_type[kElementTypes];
};

/// The export of the compile units of isa/. Each unit is compiled once per element type (SOFTKERN_ELEMENT),
/// so that a build can use every core.
template <class Isa, class T>
struct KernelsOf {
  static const Kernels kernels;
};

}  // namespace softkern::cpu
