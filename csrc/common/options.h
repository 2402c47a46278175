// SPDX-License-Identifier: Apache-2.0
// The options of cross_entropy. One list generates the schemas of the ops, the struct that kernels take, and
// everything between them.
#pragma once

#include <cstdint>

namespace softkern {

/// In the order of torch's own enum (torch.nn._reduction.get_enum).
enum Reduction : int64_t { kNone = 0, kMean = 1, kSum = 2 };

/// OPTION(kind, name, default), in the order of the schemas; the kind is the type in the schema. A new option
/// needs a line here and one in softkern/options.py: `CrossEntropyOptions` then carries it through every
/// call.
#define SOFTKERN_CROSS_ENTROPY_OPTIONS(OPTION) \
  OPTION(int, reduction, 1)                    \
  OPTION(SymInt, ignore_index, -100)           \
  OPTION(float, label_smoothing, 0.0)

/// The options that torch's loss lacks, in the same form. valid_classes: -1 for all classes; softcap: 0 for
/// none; outputs: a sum of `Output`s.
#define SOFTKERN_OWN_OPTIONS(OPTION) \
  OPTION(SymInt, valid_classes, -1)  \
  OPTION(float, logit_scale, 1.0)    \
  OPTION(float, softcap, 0.0)        \
  OPTION(float, temperature, 1.0)    \
  OPTION(float, z_loss, 0.0)         \
  OPTION(int, outputs, 1)

// The C++ type of each kind. Index is the type of sizes and indices, which are symbolic above the kernels.
template <class Index>
using int_option = int64_t;
template <class Index>
using SymInt_option = Index;
template <class Index>
using float_option = double;

#define SOFTKERN_FIELD(kind, name, initial) kind##_option<Index> name = initial;

template <class Index>
struct CrossEntropyOptionsOf {
  SOFTKERN_CROSS_ENTROPY_OPTIONS(SOFTKERN_FIELD)
};

/// The options of row_losses: those of cross_entropy, then softkern's own.
template <class Index>
struct RowOptionsOf : CrossEntropyOptionsOf<Index> {
  SOFTKERN_OWN_OPTIONS(SOFTKERN_FIELD)
};

#undef SOFTKERN_FIELD

using CrossEntropyOptions = CrossEntropyOptionsOf<int64_t>;
using RowOptions = RowOptionsOf<int64_t>;

/// The results of row_losses, as bits of its option `outputs`.
enum Output : int64_t { kLoss = 1, kLogProb = 2, kLse = 4, kEntropy = 8, kArgmax = 16, kCorrect = 32 };

/// The numbers of a row, or of some of its classes, that are merged with those of its other classes, and from
/// which the gradient of some classes is computed. Names are those of common/stats.h and row_losses.h: m,
/// ties and rest; E, 0 unless `outputs` has kEntropy; the sums of the spread mass and of the spread mass
/// times (m - z); the z of the only class index, 0 if it is not among the classes.
enum PartNumber : int64_t {
  kPartMax,
  kPartTies,
  kPartRest,
  kPartTermsBelow,
  kPartMass,
  kPartMassBelow,
  kPartHotZ,
  kPartNumbers
};

}  // namespace softkern
