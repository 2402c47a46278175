// SPDX-License-Identifier: Apache-2.0
// at::Tensor over a handle of the stable ABI, and calls of ops by name.
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <tuple>
#include <type_traits>

#include "types.h"

// Since torch 2.13; null before.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace softkern::stable {

inline void check(AOTITorchError error, const char* what) {
  if (error == TORCH_SUCCESS) return;
  const char* const cause = torch_exception_get_what_without_backtrace == nullptr
                                ? nullptr
                                : torch_exception_get_what_without_backtrace();
  throw std::runtime_error(cause != nullptr ? cause : joined("softkern: ", what, " failed in torch"));
}

}  // namespace softkern::stable

#define SOFTKERN_STABLE(function, ...) ::softkern::stable::check(function(__VA_ARGS__), #function)

namespace at {
inline namespace softkern_stable {

struct TensorOptions {
  ScalarType type;
  Device where;
  TensorOptions dtype(ScalarType other) const { return {other, where}; }
  /// All memory of softkern is contiguous.
  TensorOptions memory_format(MemoryFormat) const { return *this; }
  c10::DispatchKey computeDispatchKey() const {
    return where.is_cuda()  ? c10::DispatchKey::CUDA
           : where.is_cpu() ? c10::DispatchKey::CPU
                            : c10::DispatchKey::XPU;
  }
};

/// Owned by a handle, which owns the tensor. Undefined: null.
class Tensor {
 public:
  Tensor() = default;
  /// Takes over the handle.
  explicit Tensor(AtenTensorHandle handle) {
    bool defined = false;
    if (handle != nullptr) SOFTKERN_STABLE(aoti_torch_is_defined, handle, &defined);
    if (!defined) {
      if (handle != nullptr) aoti_torch_delete_tensor_object(handle);
      return;
    }
    handle_ = {handle, [](AtenTensorHandle owned) { aoti_torch_delete_tensor_object(owned); }};
  }
  AtenTensorHandle handle() const { return handle_.get(); }
  bool defined() const { return handle_ != nullptr; }

  int64_t dim() const { return number(aoti_torch_get_dim); }
  int64_t numel() const { return number(aoti_torch_get_numel); }
  int64_t size(int64_t dim) const {
    int64_t result = 0;
    SOFTKERN_STABLE(aoti_torch_get_size, handle(), dim, &result);
    return result;
  }
  int64_t stride(int64_t dim) const {
    int64_t result = 0;
    SOFTKERN_STABLE(aoti_torch_get_stride, handle(), dim, &result);
    return result;
  }
  IntArrayRef sizes() const {
    int64_t* sizes = nullptr;
    SOFTKERN_STABLE(aoti_torch_get_sizes, handle(), &sizes);
    return {sizes, static_cast<size_t>(dim())};
  }
  IntArrayRef strides() const {
    int64_t* strides = nullptr;
    SOFTKERN_STABLE(aoti_torch_get_strides, handle(), &strides);
    return {strides, static_cast<size_t>(dim())};
  }
  c10::SymInt sym_size(int64_t dim) const { return size(dim); }
  IntArrayRef sym_sizes() const { return sizes(); }

  /// The numbers of dtypes and devices are torch's own. Those that torch passes on, softkern only prints.
  ScalarType scalar_type() const {
    int32_t type = 0;
    SOFTKERN_STABLE(aoti_torch_get_dtype, handle(), &type);
    return static_cast<ScalarType>(type);
  }
  size_t element_size() const { return aoti_torch_dtype_element_size(static_cast<int32_t>(scalar_type())); }
  size_t nbytes() const { return static_cast<size_t>(numel()) * element_size(); }
  Device device() const {
    int32_t type = 0, index = 0;
    SOFTKERN_STABLE(aoti_torch_get_device_type, handle(), &type);
    SOFTKERN_STABLE(aoti_torch_get_device_index, handle(), &index);
    return {static_cast<DeviceType>(type), index};
  }
  bool is_cpu() const { return device().is_cpu(); }
  Layout layout() const {
    int32_t layout = 0;
    SOFTKERN_STABLE(aoti_torch_get_layout, handle(), &layout);
    return layout == aoti_torch_layout_strided() ? Layout::Strided : static_cast<Layout>(layout);
  }
  TensorOptions options() const { return {scalar_type(), device()}; }
  /// Nested tensors have dispatch keys of their own, at which Python computes. So does Autograd, whose
  /// function asks about gradients.
  bool is_nested() const { return false; }
  bool requires_grad() const { return false; }
  c10::DispatchKeySet key_set() const { return c10::DispatchKeySet(options().computeDispatchKey()); }

  bool is_contiguous() const {
    bool result = false;
    SOFTKERN_STABLE(aoti_torch_is_contiguous, handle(), &result);
    return result;
  }
  /// Whether it is the same object of C++. torch's question needs the object behind the handle.
  bool is_same(const Tensor& other) const { return handle_ == other.handle_; }

  void* data_ptr() const {
    void* data = nullptr;
    SOFTKERN_STABLE(torch_get_mutable_data_ptr, handle(), &data);
    return data;
  }
  const void* const_data_ptr() const {
    const void* data = nullptr;
    SOFTKERN_STABLE(torch_get_const_data_ptr, handle(), &data);
    return data;
  }
  template <class T>
  T* data_ptr() const {
    return static_cast<T*>(data_ptr());
  }
  template <class T>
  const T* const_data_ptr() const {
    return static_cast<const T*>(const_data_ptr());
  }

  template <class T>
  T item() const;

  // Of functions.h.
  Tensor to(ScalarType type) const;
  Tensor to(DeviceType device, ScalarType type) const;
  Tensor contiguous() const;
  Tensor clone(MemoryFormat) const;
  Tensor view(IntArrayRef sizes) const;
  Tensor view(ScalarType type) const;
  Tensor view_as(const Tensor& other) const { return view(other.sizes()); }
  Tensor expand(IntArrayRef sizes) const;
  /// The sizes of symbolic calls.
  Tensor expand_symint(std::initializer_list<c10::SymInt> sizes) const;
  Tensor reshape(IntArrayRef sizes) const;
  Tensor flatten() const { return reshape(-1); }
  Tensor narrow(int64_t dim, int64_t start, int64_t length) const;
  Tensor select(int64_t dim, int64_t index) const;
  Tensor operator[](int64_t index) const { return select(0, index); }
  Tensor squeeze(int64_t dim) const;
  Tensor unsqueeze(int64_t dim) const;
  Tensor movedim(int64_t from, int64_t to) const;
  Tensor t() const;
  Tensor gather(int64_t dim, const Tensor& index) const;
  Tensor index_select(int64_t dim, const Tensor& index) const;
  Tensor index_copy_(int64_t dim, const Tensor& index, const Tensor& source) const;
  Tensor nonzero() const;
  Tensor any() const;
  Tensor sum(int64_t dim) const;
  Tensor abs() const;
  Tensor amax() const;
  Tensor neg() const;
  Tensor floor() const;
  Tensor log2() const;
  Tensor exp2() const;
  Tensor isnan() const;
  Tensor nan_to_num(double nan) const;
  Tensor logical_not() const;
  Tensor logical_and(const Tensor& other) const;
  Tensor logical_or(const Tensor& other) const;
  // Numbers in the place of tensors: in the dtype of this tensor.
  Tensor mul(const Tensor& other) const;
  Tensor mul(double other) const;
  Tensor add(int64_t other) const;
  /// this + other * alpha
  Tensor add(const Tensor& other, int64_t alpha) const;
  Tensor bitwise_left_shift(int64_t bits) const;
  Tensor clamp(double least, double most) const;
  Tensor clamp_min(int64_t least) const;
  Tensor eq(int64_t other) const;
  Tensor ne(int64_t other) const;
  Tensor ne(double other) const;
  Tensor ne(int other) const { return ne(int64_t{other}); }
  Tensor lt(int64_t other) const;
  Tensor ge(int64_t other) const;
  Tensor masked_fill(const Tensor& mask, int64_t value) const;
  // In place, and the tensor itself.
  const Tensor& copy_(const Tensor& source) const;
  const Tensor& zero_() const;
  const Tensor& fill_(double value) const;
  const Tensor& add_(const Tensor& other) const;
  const Tensor& mul_(const Tensor& other) const;

 private:
  int64_t number(AOTITorchError (*get)(AtenTensorHandle, int64_t*)) const {
    int64_t result = 0;
    softkern::stable::check(get(handle(), &result), "a property of a tensor");
    return result;
  }

  std::shared_ptr<AtenTensorOpaque> handle_;
};

}  // namespace softkern_stable
}  // namespace at

namespace softkern::stable {

using at::Tensor;

/// Between arguments or results and the values of the stable ABI. The result of box() owns what it refers to,
/// and unbox() takes it over.
template <class T>
struct Boxed {
  static StableIValue box(const T& x) { return torch::stable::detail::from(x); }
  static T unbox(StableIValue x) { return torch::stable::detail::to<T>(x); }
};
template <>
struct Boxed<Tensor> {
  static StableIValue box(const Tensor& x) {
    AtenTensorHandle owned = nullptr;
    TORCH_CHECK(x.defined(), "softkern: a tensor is undefined");
    SOFTKERN_STABLE(aoti_torch_new_tensor_handle, x.handle(), &owned);
    return torch::stable::detail::from(owned);
  }
  static Tensor unbox(StableIValue x) { return Tensor(torch::stable::detail::to<AtenTensorHandle>(x)); }
};
template <>
struct Boxed<c10::SymInt> {
  static StableIValue box(const c10::SymInt& x) { return torch::stable::detail::from(x.value); }
  static c10::SymInt unbox(StableIValue x) { return torch::stable::detail::to<int64_t>(x); }
};
template <>
struct Boxed<std::optional<Tensor>> {
  static StableIValue box(const std::optional<Tensor>& x) {
    if (!x.has_value() || !x->defined()) return torch::stable::detail::from(std::nullopt);
    return torch::stable::detail::from(new StableIValue(Boxed<Tensor>::box(*x)));
  }
  static std::optional<Tensor> unbox(StableIValue x) {
    const std::unique_ptr<StableIValue> held(torch::stable::detail::to<StableIValue*>(x));
    return held == nullptr ? std::nullopt : std::optional<Tensor>(Boxed<Tensor>::unbox(*held));
  }
};
template <>
struct Boxed<at::IntArrayRef> {
  static StableIValue box(const at::IntArrayRef& x) {
    return torch::stable::detail::from(static_cast<const c10::HeaderOnlyArrayRef<int64_t>&>(x));
  }
};

template <class T>
using Plain = std::remove_cv_t<std::remove_reference_t<T>>;

/// Results from the values that a call has left.
template <class R>
struct Results {
  static constexpr size_t kCount = 1;
  static R unbox(const StableIValue* values) { return Boxed<R>::unbox(values[0]); }
  static void box(StableIValue* values, const R& result) { values[0] = Boxed<R>::box(result); }
};
template <>
struct Results<void> {
  static constexpr size_t kCount = 0;
  static void unbox(const StableIValue*) {}
};
template <class... R>
struct Results<std::tuple<R...>> {
  static constexpr size_t kCount = sizeof...(R);
  static std::tuple<R...> unbox(const StableIValue* values) {
    return at(values, std::index_sequence_for<R...>());
  }
  static void box(StableIValue* values, const std::tuple<R...>& results) {
    std::apply([&](const auto&... x) { ((*values++ = Boxed<Plain<decltype(x)>>::box(x)), ...); }, results);
  }

 private:
  template <size_t... i>
  static std::tuple<R...> at(const StableIValue* values, std::index_sequence<i...>) {
    return {Boxed<R>::unbox(values[i])...};
  }
};

/// Calls an op through the dispatcher. Arguments must have the types of the schema, defaults included.
template <class R, class... A>
R call(const char* name, const char* overload, const A&... a) {
  std::array<StableIValue, std::max<size_t>({1, sizeof...(A), Results<R>::kCount})> values{
      Boxed<A>::box(a)...};
  check(torch_call_dispatcher(name, overload, values.data(), TORCH_ABI_VERSION), name);
  return Results<R>::unbox(values.data());
}

}  // namespace softkern::stable
