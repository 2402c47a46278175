// SPDX-License-Identifier: Apache-2.0
// The options of cross_entropy: one list, of which the schemas of the ops, the struct that kernels take and
// all that lies between them are made.
#pragma once

#include <cstdint>

namespace softkern {

/// In the order of torch's own enum (torch.nn._reduction.get_enum).
enum Reduction : int64_t { kNone = 0, kMean = 1, kSum = 2 };

/// OPTION(kind, name, default), in the order of the schemas; the kind is the schema's type. A new option is a
/// line here and one in softkern/options.py, and then it is in `CrossEntropyOptions` wherever a call goes.
#define SOFTKERN_CROSS_ENTROPY_OPTIONS(OPTION) \
  OPTION(int, reduction, 1)                    \
  OPTION(SymInt, ignore_index, -100)           \
  OPTION(float, label_smoothing, 0.0)

// What a kind is in C++. Index: of sizes and indices, which are symbolic above the kernels.
template <class Index>
using int_option = int64_t;
template <class Index>
using SymInt_option = Index;
template <class Index>
using float_option = double;

template <class Index>
struct CrossEntropyOptionsOf {
#define SOFTKERN_FIELD(kind, name, initial) kind##_option<Index> name = initial;
  SOFTKERN_CROSS_ENTROPY_OPTIONS(SOFTKERN_FIELD)
#undef SOFTKERN_FIELD
};

using CrossEntropyOptions = CrossEntropyOptionsOf<int64_t>;

}  // namespace softkern
