// SPDX-License-Identifier: Apache-2.0
// The arguments and results of the CUDA kernels. No header of torch or CUDA is included: a stream is a
// pointer.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/elements.h"
#include "../common/options.h"

namespace softkern::cuda {

/// Where and how to launch: a stream of the current device, and what plans depend on. device.h makes it.
struct DeviceStream {
  void* handle = nullptr;
  int device = 0;
  int most_blocks = 1;  // of a cluster; 1 below compute capability 9.0
  // Bytes of shared memory.
  int shared_of_block = 48 << 10;
  int shared_of_multiprocessor = 48 << 10;
  bool overlaps =
      false;  // kernels may begin before the previous one of the stream has ended, also in a graph
  // The previous kernel is of the same call, so the new one begins early if that is supported, and waits for
  // it (follow_previous_kernel).
  bool follows = false;

  bool begins_early() const { return overlaps && follows; }
  DeviceStream after_kernel() const {
    DeviceStream result = *this;
    result.follows = true;
    return result;
  }
};

/// Why a launch failed, or null; and the name of the way that computed the rows.
struct Outcome {
  const char* error;
  const char* path;
};

struct ForwardArgs {
  Shape shape;
  int64_t rows;
  Rows input;
  Rows output;
};

struct BackwardArgs {
  Shape shape;
  int64_t rows;
  Rows grad_output;
  Rows output;  // of the forward
  Rows grad_input;
};

enum IndexType : int { kInt64, kInt32, kUInt8 };

/// The compute type is double for double, and float for all other types. Pointers are to device memory.
struct CrossEntropyArgs {
  Shape shape;
  int64_t rows;
  Rows logits;
  const void* target;  // class indices, one per row, in range or ignored; null with probabilities
  IndexType target_type;
  Rows probabilities;  // data null with class indices
  const void* weight;  // element type of the logits, one per class; or null
  CrossEntropyOptions options;
  void* loss;          // one per row
  bool narrow_loss;    // loss in the logits' type, else in the compute type
  Rows grad;           // data null: no gradient wanted; may be the logits
  double grad_factor;  // multiplies every gradient row
  const void* factor;  // a further factor, of the compute type; or null
};

/// Numbers of the compute type, one per row; `log_prob` has one for each class index of a row. Null: not
/// wanted, or not given.
struct RowNumbers {
  void* loss;
  void* log_prob;
  void* lse;
  void* entropy;
};

/// The PartNumbers of rows, in the compute type: number i of row r is at[i * step + r]. Null: not wanted, or
/// not given.
struct PartNumbers {
  void* at;
  int64_t step;
};

/// The losses and statistics of rows, and the gradient of the logits for their upstream gradients
/// (common/row_losses.h). Numbers of rows and indices are contiguous.
struct RowLossArgs {
  Shape shape;      // of the classes that are read
  int64_t classes;  // all classes: the gradient of those after the shape's is 0
  // The logits may be those of some classes of the rows, from the class `first` on. Class indices, weights
  // and the options are of whole rows.
  int64_t first;
  int64_t rows;
  Rows logits;
  const void* target;  // class indices, or null
  IndexType target_type;
  int64_t per_row;           // indices per row, none of which is ignored; 0: one, which may be ignored
  const void* target_probs;  // of the compute type, one per index; or null: the indices have no mass
  Rows probabilities;        // data null with class indices
  const void* weight;        // element type of the logits, one per class; or null
  const void* row_weight;    // of the compute type, one per row; or null
  RowOptions options;        // valid_classes is the number of them
  PartNumbers whole;         // of whole rows: row_parts computes the gradient from them
  PartNumbers parts;         // of these logits
  RowNumbers results;
  int64_t* argmax;
  bool* correct;
  Rows grad;            // data null: no gradient wanted; may be the logits
  double grad_factor;   // multiplies the upstream gradients of the losses
  const void* factor;   // a further factor, of the compute type; or null
  RowNumbers upstream;  // loss null: 1; others null: 0
  void* hot_z;          // for the z of all class indices, of the compute type; null without per_row
};

/// The numbers of whole rows from those of their parts, and the results from them (common/parts.h).
struct RowMergeArgs {
  const void* parts;  // PartNumbers: number i of row r is at [i * number_step + part * node_step + r]
  int64_t number_step, node_step, nodes;
  PartNumbers merged;
  // Of whole rows, without logits and parts. hot_z is read.
  RowLossArgs rows;
};

/// out = in * (upstream * scale). out may be in.
struct ScaleArgs {
  Shape shape;
  int64_t rows;
  Rows input;
  Rows output;
  const void* upstream;  // of an element type; one number for all rows, or with by_row one per row
  ElementType upstream_type;
  bool by_row;
  const void* scale;   // compute type
  const void* target;  // class indices, whose ignored rows stay zeros; or null
  IndexType target_type;
  int64_t ignore_index;
};

/// The weights w_y of class indices, one per row.
struct TargetWeights {
  const void* target;
  IndexType target_type;
  int64_t classes, ignore_index;
  const void* weight;  // of weight_type, or null
  ElementType weight_type;
};

/// The sum of w_y over the targets that are not ignored, as a double, and its reciprocal. The sum is NaN if
/// none of these targets has a nonzero weight.
struct MassArgs {
  TargetWeights weights;
  int64_t rows;
  double* mass;
  void* factor;  // double with factor_in_double, else float
  bool factor_in_double;
  double* scratch;  // of sum_scratch(rows) numbers
};

/// loss = sum / mass, and the factor of stored gradients: 1 if they are stored unscaled, 1 / (mass * storage)
/// if they are scaled by `storage`.
struct ReduceArgs {
  const void* losses;  // double with in_double, else float
  bool in_double;
  int64_t rows;
  double divisor;      // divides the sum
  const double* mass;  // replaces divisor unless null
  bool by_weight;      // the sum of the weights, as in MassArgs, replaces both
  TargetWeights weights;
  double storage;       // 0: gradients are stored unscaled
  const float* stored;  // replaces storage unless null
  void* loss;
  ElementType loss_type;
  void* grad_scale;  // double with in_double, else float; or null
  double* scratch;   // of sum_scratch(rows) numbers
};

/// A softmax or its backward: Op is a tag that names it (`struct Softmax;`), and the op's .cu file has the
/// specialisations.
template <class Op, class T, class Args>
Outcome compute(const Args& args, const DeviceStream& stream);

template <class T>
Outcome cross_entropy(const CrossEntropyArgs& args, const DeviceStream& stream);
template <class T>
Outcome row_losses(const RowLossArgs& args, const DeviceStream& stream);
/// The gradient alone, for rows whose numbers are known.
template <class T>
Outcome row_parts(const RowLossArgs& args, const DeviceStream& stream);
template <class T>
Outcome row_merge(const RowMergeArgs& args, const DeviceStream& stream);
template <class T>
Outcome scale(const ScaleArgs& args, const DeviceStream& stream);

int64_t sum_scratch(int64_t rows);
const char* find_mass(const MassArgs& args, const DeviceStream& stream);
const char* reduce_losses(const ReduceArgs& args, const DeviceStream& stream);

}  // namespace softkern::cuda
