// SPDX-License-Identifier: Apache-2.0
// What the CPU kernels take and return. Free of torch: kernels compile in a second and can be run under
// sanitizers, valgrind and fuzzers without Python.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/elements.h"
#include "../common/options.h"
#include "../common/ran.h"

namespace softkern::cpu {

/// The rows [begin, end) of a call, and memory of Kernel::scratch_bytes for this range alone.
struct Range {
  int64_t begin;
  int64_t end;
  void* scratch;
};

/// Chunks begin at multiples of so many classes.
constexpr int64_t kChunkClasses = 2048;

/// The classes [begin, end) of a row that threads share. A kernel's steps are done one after the other, each
/// for all chunks of the row; what a step leaves for the next lies in `shared`, Kernel::shared_bytes for the
/// row.
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
  bool stream;  // write past the caches
};

struct BackwardArgs {
  Shape shape;
  Rows grad_output;
  Rows output;  // of the forward
  Rows grad_input;
  bool stream;
};

/// Compute type: double for kDouble, float for the rest.
struct CrossEntropyArgs {
  Shape shape;
  Rows logits;
  const int64_t* target;  // class indices, one a row, in range or ignored; null with probabilities
  Rows probabilities;     // data null with class indices
  const void* weight;     // element type of the logits, one a class; or null
  CrossEntropyOptions options;
  void* loss;          // compute type, one a row
  Rows grad;           // data null: no gradient wanted
  double grad_factor;  // multiplies every gradient row
  bool stream;         // write the gradient past the caches; it must not lie over the logits
};

/// grad row r *= factor[r * factor_step]; out may be the same memory as in.
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
  void* mass;  // compute type, one a row
  static constexpr bool stream = false;
};

/// An op on whole rows, and on chunks of rows that threads share.
template <class Args>
struct Kernel {
  Ran (*rows)(const Args&, Range);
  size_t (*scratch_bytes)(const Args&, int64_t rows);  // of a range of so many rows
  Ran (*chunk)(const Args&, const Chunk&, int step) = nullptr;
  int steps = 0;
  size_t (*shared_bytes)(const Args&, int chunks) = nullptr;  // 0: no rows of this call are shared
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
  Kernel<ScaleArgs> scale;
  Kernel<MassArgs> mass;  // of float16 alone, which stores gradients at a size of their own
  double (*sum_losses)(const void* losses, int64_t n);  // of the compute type
  TargetCounts (*count_targets)(const int64_t* target, int64_t rows, int64_t classes, int64_t ignore_index);
};

struct KernelTable {
  const char* isa;
  const Kernels* by_type[kElementTypes];
};

/// What the compile units of isa/ export: each is compiled once for an element type, SOFTKERN_ELEMENT, so
/// that a build has something to do for every core.
template <class Isa, class T>
struct KernelsOf {
  static const Kernels kernels;
};

}  // namespace softkern::cpu
