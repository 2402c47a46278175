// SPDX-License-Identifier: Apache-2.0
// The options of cross_entropy. The dispatcher passes them as one argument each, C++ as a struct.
#pragma once

#include <c10/core/SymInt.h>

#include <tuple>
#include <type_traits>
#include <utility>

#include "../common/options.h"

namespace softkern {

/// The options of linear_cross_entropy alone, which no kernel needs. plan: a `Plan`; max_bytes: -1 for no
/// limit; chunk_rows: 0 to let the plan choose; wide_loss: 1 for a loss in the compute type.
#define SOFTKERN_LINEAR_OPTIONS(OPTION) \
  OPTION(int, plan, 0)                  \
  OPTION(int, max_bytes, -1)            \
  OPTION(int, chunk_rows, 0)            \
  OPTION(int, wide_loss, 0)

/// The options of linear_cross_entropy: those of row_losses, then those of the plan.
template <class Index>
struct LinearOptionsOf : RowOptionsOf<Index> {
#define SOFTKERN_FIELD(kind, name, initial) kind##_option<Index> name = initial;
  SOFTKERN_LINEAR_OPTIONS(SOFTKERN_FIELD)
#undef SOFTKERN_FIELD
};
using LinearOptions = LinearOptionsOf<int64_t>;

/// How linear_cross_entropy computes (linear_cross_entropy/plan.h).
enum Plan : int64_t { kAutoPlan = 0, kFastPlan = 1, kLeanPlan = 2, kReferencePlan = 3 };

/// The options as the dispatcher passes them: integers may be symbolic.
using SymCrossEntropyOptions = CrossEntropyOptionsOf<c10::SymInt>;
using SymRowOptions = RowOptionsOf<c10::SymInt>;
using SymLinearOptions = LinearOptionsOf<c10::SymInt>;

// A list that the X-macro makes begins with a comma. A dummy element goes before it and is dropped.
#define SOFTKERN_TYPE(kind, name, initial) , kind##_option<Index>
#define SOFTKERN_MEMBER(kind, name, initial) , options.name
#define SOFTKERN_PARAMETER(kind, name, initial) ", " #kind " " #name
#define SOFTKERN_PARAMETER_WITH_DEFAULT(kind, name, initial) ", " #kind " " #name "=" #initial

/// The options as parameters of a schema, after other parameters: all of them required, or with defaults.
#define SOFTKERN_OPTIONS_SCHEMA SOFTKERN_CROSS_ENTROPY_OPTIONS(SOFTKERN_PARAMETER)
#define SOFTKERN_OPTIONS_SCHEMA_WITH_DEFAULTS SOFTKERN_CROSS_ENTROPY_OPTIONS(SOFTKERN_PARAMETER_WITH_DEFAULT)
#define SOFTKERN_ROW_OPTIONS_SCHEMA SOFTKERN_OPTIONS_SCHEMA SOFTKERN_OWN_OPTIONS(SOFTKERN_PARAMETER)
#define SOFTKERN_ROW_OPTIONS_SCHEMA_WITH_DEFAULTS \
  SOFTKERN_OPTIONS_SCHEMA_WITH_DEFAULTS SOFTKERN_OWN_OPTIONS(SOFTKERN_PARAMETER_WITH_DEFAULT)
#define SOFTKERN_LINEAR_OPTIONS_SCHEMA SOFTKERN_ROW_OPTIONS_SCHEMA SOFTKERN_LINEAR_OPTIONS(SOFTKERN_PARAMETER)
#define SOFTKERN_LINEAR_OPTIONS_SCHEMA_WITH_DEFAULTS \
  SOFTKERN_ROW_OPTIONS_SCHEMA_WITH_DEFAULTS SOFTKERN_LINEAR_OPTIONS(SOFTKERN_PARAMETER_WITH_DEFAULT)

template <class... T>
struct Types {};
template <class Dropped, class... T>
Types<T...> all_but_first(Types<Dropped, T...>);

/// The types of a struct's fields, in order.
template <class Options>
struct OptionTypesOf;
template <class Index>
struct OptionTypesOf<CrossEntropyOptionsOf<Index>> {
  using Type = decltype(all_but_first(Types<void SOFTKERN_CROSS_ENTROPY_OPTIONS(SOFTKERN_TYPE)>()));
};
template <class Index>
struct OptionTypesOf<RowOptionsOf<Index>> {
  using Type = decltype(all_but_first(
      Types<void SOFTKERN_CROSS_ENTROPY_OPTIONS(SOFTKERN_TYPE) SOFTKERN_OWN_OPTIONS(SOFTKERN_TYPE)>()));
};
template <class Index>
struct OptionTypesOf<LinearOptionsOf<Index>> {
  using Type =
      decltype(all_but_first(Types<void SOFTKERN_CROSS_ENTROPY_OPTIONS(SOFTKERN_TYPE) SOFTKERN_OWN_OPTIONS(
                                 SOFTKERN_TYPE) SOFTKERN_LINEAR_OPTIONS(SOFTKERN_TYPE)>()));
};

/// The fields of `options`, in order, as a tuple of references.
template <class Index>
auto fields(const CrossEntropyOptionsOf<Index>& options) {
  return [](int, const auto&... field) {
    return std::tie(field...);
  }(0 SOFTKERN_CROSS_ENTROPY_OPTIONS(SOFTKERN_MEMBER));
}
template <class Index>
auto fields(const RowOptionsOf<Index>& options) {
  return [](int, const auto&... field) {
    return std::tie(field...);
  }(0 SOFTKERN_CROSS_ENTROPY_OPTIONS(SOFTKERN_MEMBER) SOFTKERN_OWN_OPTIONS(SOFTKERN_MEMBER));
}
template <class Index>
auto fields(const LinearOptionsOf<Index>& options) {
  return [](int, const auto&... field) { return std::tie(field...); }(0 SOFTKERN_CROSS_ENTROPY_OPTIONS(
             SOFTKERN_MEMBER) SOFTKERN_OWN_OPTIONS(SOFTKERN_MEMBER) SOFTKERN_LINEAR_OPTIONS(SOFTKERN_MEMBER));
}

#undef SOFTKERN_TYPE
#undef SOFTKERN_MEMBER

/// A number that the kernels need. A symbolic number is specialized to its value.
inline int64_t as_int(const c10::SymInt& x) { return x.guard_int(__FILE__, __LINE__); }

/// The options as kernels take them: a symbolic number is specialized to its value.
template <template <class> class Options>
Options<int64_t> known(const Options<c10::SymInt>& options) {
  const auto fixed = [](const auto& field) {
    if constexpr (std::is_same_v<decltype(field), const c10::SymInt&>) {
      return as_int(field);
    } else {
      return field;
    }
  };
  return std::apply([&](const auto&... field) { return Options<int64_t>{fixed(field)...}; }, fields(options));
}
template <template <class> class Options>
Options<c10::SymInt> symbolic(const Options<int64_t>& options) {
  return std::apply([](const auto&... field) { return Options<c10::SymInt>{field...}; }, fields(options));
}

}  // namespace softkern
