// SPDX-License-Identifier: Apache-2.0
// Calls and registrations of ops with the names of c10 and torch.
#pragma once

#include <string>

#include "tensor.h"

namespace c10 {
inline namespace softkern_stable {

struct OperatorName {
  const char* name;
  const char* overload;
};

template <class Signature>
class TypedOperatorHandle;
template <class R, class... A>
class TypedOperatorHandle<R(A...)> {
 public:
  explicit TypedOperatorHandle(const char* name) : name_(name) {}
  R call(A... a) const { return softkern::stable::call<R, softkern::stable::Plain<A>...>(name_, "", a...); }
  /// Without keys, since the stable ABI has none. The keys above the kernels pass the ops on that softkern
  /// calls in this way: no function is registered there.
  R redispatch(DispatchKeySet, A... a) const { return call(static_cast<A&&>(a)...); }

 private:
  const char* name_;
};

/// An op that torch may have. Only asked for products of 16-bit matrices with a float32 result, which CUDA
/// has.
struct OperatorHandle {
  const char* name;
  template <class Signature>
  TypedOperatorHandle<Signature> typed() const {
    return TypedOperatorHandle<Signature>(name);
  }
  bool hasKernelForDispatchKey(DispatchKey key) const { return key == DispatchKey::CUDA; }
};

class Dispatcher {
 public:
  static Dispatcher singleton() { return {}; }
  OperatorHandle findSchemaOrThrow(const char* name, const char*) const { return {name}; }
  std::optional<OperatorHandle> findSchema(const OperatorName& op) const { return OperatorHandle{op.name}; }
};

}  // namespace softkern_stable
}  // namespace c10

namespace softkern::stable {

/// A function as a type, from which the function that takes the values of the stable ABI is made.
template <class Function, Function* kFunction>
struct Fixed;
template <class R, class... A, R (*kFunction)(A...)>
struct Fixed<R(A...), kFunction> {
  static void boxed(StableIValue* values, uint64_t, uint64_t) {
    // All of them, before anything can raise.
    std::tuple<Plain<A>...> arguments = unboxed(values, std::index_sequence_for<A...>());
    if constexpr (std::is_void_v<R>) {
      std::apply(kFunction, arguments);
    } else {
      Results<R>::box(values, std::apply(kFunction, arguments));
    }
  }

 private:
  template <size_t... i>
  static std::tuple<Plain<A>...> unboxed(const StableIValue* values, std::index_sequence<i...>) {
    return std::tuple<Plain<A>...>{Boxed<Plain<A>>::unbox(values[i])...};
  }
};

}  // namespace softkern::stable

#define TORCH_FN(function)   \
  ::softkern::stable::Fixed< \
      std::remove_pointer_t<std::remove_cv_t<std::remove_reference_t<decltype(function)>>>, function>()

namespace torch {
inline namespace softkern_stable {

class Library {
 public:
  explicit Library(stable::detail::StableLibrary& library) : library_(library) {}
  void def(const char* schema) { library_.def(schema); }
  template <class Function>
  void impl(const char* name, Function) {
    library_.impl(name, &Function::boxed);
  }

 private:
  stable::detail::StableLibrary& library_;
};

}  // namespace softkern_stable
}  // namespace torch

#define TORCH_LIBRARY(library, m)                                \
  static void softkern_define_##library(::torch::Library m);     \
  STABLE_TORCH_LIBRARY(library, stable_library) {                \
    softkern_define_##library(::torch::Library(stable_library)); \
  }                                                              \
  void softkern_define_##library(::torch::Library m)

// Functions for devices. Python registers those of all other keys (softkern/_binding/stable/).
#define TORCH_LIBRARY_IMPL(library, key, m) SOFTKERN_STABLE_IMPL_##key(library, key, m, C10_UID)
#define SOFTKERN_STABLE_IMPL_CPU(library, key, m, id) SOFTKERN_STABLE_IMPL(library, key, m, id)
#define SOFTKERN_STABLE_IMPL_CUDA(library, key, m, id) SOFTKERN_STABLE_IMPL(library, key, m, id)
#define SOFTKERN_STABLE_IMPL_XPU(library, key, m, id) SOFTKERN_STABLE_IMPL(library, key, m, id)
#define SOFTKERN_STABLE_IMPL(library, key, m, id)                          \
  static void C10_CONCATENATE(softkern_##key, id)(::torch::Library m);     \
  STABLE_TORCH_LIBRARY_IMPL(library, key, stable_library) {                \
    C10_CONCATENATE(softkern_##key, id)(::torch::Library(stable_library)); \
  }                                                                        \
  void C10_CONCATENATE(softkern_##key, id)(::torch::Library m)
#define SOFTKERN_STABLE_IMPL_CompositeExplicitAutograd(library, key, m, id) SOFTKERN_STABLE_OMIT(m, id)
#define SOFTKERN_STABLE_IMPL_CompositeImplicitAutogradNestedTensor(library, key, m, id) \
  SOFTKERN_STABLE_OMIT(m, id)
#define SOFTKERN_STABLE_OMIT(m, id) \
  [[maybe_unused]] static void C10_CONCATENATE(softkern_omitted, id)([[maybe_unused]] ::torch::Library & m)
