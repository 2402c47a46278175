// SPDX-License-Identifier: Apache-2.0
// Ops as C++ objects. One line declares an op: its name, its schema and its C++ signature. The calls through
// the dispatcher and to the backend's function are deduced from the signature. In it, `const
// SymCrossEntropyOptions&` (or CrossEntropyOptions, SymRowOptions, RowOptions, SymLinearOptions) stands for
// one argument per option.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <array>

#include "backend.h"
#include "options.h"

namespace softkern {

using OptionalTensor = std::optional<at::Tensor>;

/// Undefined tensors are those that were not given.
inline OptionalTensor if_given(const at::Tensor& x) { return x.defined() ? OptionalTensor(x) : std::nullopt; }

// ---- Signatures: C++ passes the options as a struct, the dispatcher and pybind11 as one argument each.

/// The dispatcher's form of an argument: the argument itself, or one argument per option.
template <class A>
struct Unpacked {
  using Arguments = Types<A>;
  static constexpr size_t kSize = 1;
  static std::tuple<A&&> of(std::remove_reference_t<A>& a) { return {static_cast<A&&>(a)}; }
};

template <class Options>
struct UnpackedOptions {
  using Arguments = typename OptionTypesOf<Options>::Type;
  static constexpr size_t kSize = std::tuple_size_v<decltype(fields(Options()))>;
  static_assert(kSize > 1, "PackedCall takes one argument for no options");
  static auto of(const Options& options) { return fields(options); }
};
template <class Index>
struct Unpacked<const CrossEntropyOptionsOf<Index>&> : UnpackedOptions<CrossEntropyOptionsOf<Index>> {};
template <class Index>
struct Unpacked<const RowOptionsOf<Index>&> : UnpackedOptions<RowOptionsOf<Index>> {};
template <class Index>
struct Unpacked<const LinearOptionsOf<Index>&> : UnpackedOptions<LinearOptionsOf<Index>> {};

template <class R, class... A>
struct Joined;
template <class R, class... A>
struct Joined<R, Types<A...>> {
  using Signature = R(A...);
};
template <class R, class... A, class... B, class... Rest>
struct Joined<R, Types<A...>, Types<B...>, Rest...> : Joined<R, Types<A..., B...>, Rest...> {};

/// The signature with an argument for each option.
template <class R, class... A>
using UnpackedSignature = typename Joined<R, typename Unpacked<A>::Arguments...>::Signature;

/// Calls kFunction with the arguments of UnpackedSignature.
template <auto kFunction, class Signature, class UnpackedType>
struct PackedCall;
template <auto kFunction, class R, class... A, class... U>
struct PackedCall<kFunction, R(A...), R(U...)> {
  static R call(U... unpacked) {
    std::tuple<U&&...> all(static_cast<U&&>(unpacked)...);
    return at_offsets(all, std::index_sequence_for<A...>());
  }

 private:
  template <size_t... kArgument>
  static R at_offsets(std::tuple<U&&...>& all, std::index_sequence<kArgument...>) {
    return kFunction(packed<A, offset(kArgument)>(all, std::make_index_sequence<Unpacked<A>::kSize>())...);
  }
  static constexpr size_t offset(size_t argument) {
    const size_t sizes[] = {Unpacked<A>::kSize...};
    size_t result = 0;
    for (size_t i = 0; i < argument; ++i) result += sizes[i];
    return result;
  }
  template <class P, size_t kOffset, size_t... kField>
  static auto packed(std::tuple<U&&...>& all, std::index_sequence<kField...>)
      -> std::conditional_t<sizeof...(kField) == 1, P&&, std::remove_cv_t<std::remove_reference_t<P>>> {
    if constexpr (sizeof...(kField) == 1) {
      return std::get<kOffset>(std::move(all));
    } else {
      return {std::get<kOffset + kField>(std::move(all))...};
    }
  }
};

template <class Function>
struct SignatureOf;
template <class R, class... A>
struct SignatureOf<R (*)(A...)> {
  using Type = R(A...);
  using UnpackedType = UnpackedSignature<R, A...>;
};

/// `kFunction` for callers that pass one argument per option: the dispatcher and pybind11.
template <auto kFunction>
constexpr auto unpacked = &PackedCall<kFunction, typename SignatureOf<decltype(kFunction)>::Type,
                                      typename SignatureOf<decltype(kFunction)>::UnpackedType>::call;

// ---- Ops.

/// `Tag` has the names and the schema. Each tag has its own handle, since ops may share a signature.
template <class Tag, class Signature>
class Op;

template <class Tag, class R, class... A>
class Op<Tag, R(A...)> {
  using Dispatched = UnpackedSignature<R, A...>;

 public:
  using Function = R (*)(A...);
  static constexpr const char* kName = Tag::kName;
  static constexpr const char* kSchema = Tag::kSchema;

  /// Calls the op through the dispatcher, so that every mode and backend sees the call.
  static R call(A... a) {
    return std::apply([](auto&&... u) -> R { return handle().call(static_cast<decltype(u)>(u)...); },
                      std::tuple_cat(Unpacked<A>::of(a)...));
  }
  R operator()(A... a) const { return call(static_cast<A&&>(a)...); }

  /// Calls the kernel of a dispatch key directly.
  static R redispatch(c10::DispatchKeySet keys, A... a) {
    return std::apply(
        [&](auto&&... u) -> R { return handle().redispatch(keys, static_cast<decltype(u)>(u)...); },
        std::tuple_cat(Unpacked<A>::of(a)...));
  }

  static c10::Device device_of(const std::remove_reference_t<A>&... a) {
    return std::get<Tag::kDeviceArgument>(std::tie(a...)).device();
  }

  /// Sets a backend's function for the op. Each backend calls this once, when the library is loaded.
  static bool computed_by(Backend backend, Function function) {
    functions()[static_cast<size_t>(backend)] = function;
    return true;
  }

  /// Calls the function of the backend that computes on the op's device.
  static R route(A... a) {
    const c10::Device device = device_of(a...);
    const Function function = functions()[static_cast<size_t>(backend_for(device))];
    if (function == nullptr) raise_no_backend(device);
    return function(static_cast<A&&>(a)...);
  }

 private:
  static const c10::TypedOperatorHandle<Dispatched>& handle() {
    static const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow(Tag::kQualifiedName, "").template typed<Dispatched>();
    return op;
  }
  static std::array<Function, kBackends>& functions() {
    static std::array<Function, kBackends> by_backend{};
    return by_backend;
  }
};

/// SOFTKERN_OP(library, name, argument, schema, signature) declares the object `name` for the op
/// library::name. `argument` is the index of the tensor whose device selects the backend.
#define SOFTKERN_OP(library, name, argument, schema, ...)                   \
  struct name##_tag {                                                       \
    static constexpr const char* kName = #name;                             \
    static constexpr const char* kQualifiedName = #library "::" #name;      \
    static constexpr const char* kNameInTriton = "softkern_triton::" #name; \
    static constexpr const char* kSchema = #name schema;                    \
    static constexpr size_t kDeviceArgument = argument;                     \
  };                                                                        \
  inline constexpr Op<name##_tag, __VA_ARGS__> name {}

/// The op of the same name in the library `softkern_triton`, whose kernels Python registers.
template <class Tag>
struct InTriton : Tag {
  static constexpr const char* kQualifiedName = Tag::kNameInTriton;
};
template <class Tag, class Signature>
constexpr Op<InTriton<Tag>, Signature> in_triton(const Op<Tag, Signature>&) {
  return {};
}

}  // namespace softkern
