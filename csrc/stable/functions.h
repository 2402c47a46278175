// SPDX-License-Identifier: Apache-2.0
// The functions of at:: that csrc/ops calls. The stable ABI has no Scalar: a number goes to an op as a tensor
// of one number, and addition, whose `alpha` is a Scalar, is subtraction with a factor of -1, which has the
// same bits.
#pragma once

#include <vector>

#include "tensor.h"

extern "C" {
// Declared in generated headers that need not be on the include path.
AOTITorchError aoti_torch_aten_fill__Scalar(AtenTensorHandle self, double value);
AOTITorchError aoti_torch_aten_subtract_Tensor(AtenTensorHandle self, AtenTensorHandle other, double alpha,
                                               AtenTensorHandle* result);
AOTITorchError aoti_torch_cpu_addmm_out(AtenTensorHandle out, AtenTensorHandle self, AtenTensorHandle mat1,
                                        AtenTensorHandle mat2, double beta, double alpha);
}

namespace at {
inline namespace softkern_stable {

using softkern::stable::call;
using Dtype = std::optional<ScalarType>;
using Dims = std::vector<int64_t>;

inline Tensor empty(IntArrayRef sizes, const TensorOptions& options) {
  std::vector<int64_t> strides(sizes.size());
  int64_t step = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = step;
    step *= std::max<int64_t>(1, sizes[i]);
  }
  AtenTensorHandle result = nullptr;
  SOFTKERN_STABLE(aoti_torch_empty_strided, static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                  static_cast<int32_t>(options.type), static_cast<int32_t>(options.where.type()),
                  options.where.index(), &result);
  return Tensor(result);
}
inline Tensor full(IntArrayRef sizes, double value, const TensorOptions& options) {
  return Tensor(empty(sizes, options)).fill_(value);
}
inline Tensor zeros(IntArrayRef sizes, const TensorOptions& options) {
  return Tensor(empty(sizes, options)).zero_();
}
inline Tensor ones(IntArrayRef sizes, const TensorOptions& options) { return full(sizes, 1, options); }
inline Tensor scalar_tensor(double value, const TensorOptions& options) { return full({}, value, options); }

/// A number as the second operand of an op with x. With a tensor that has dims, float64 and int64 change no
/// dtype, and the op reads the number itself.
inline Tensor operand(const Tensor& x, double value) {
  const bool integral = !isFloatingType(x.scalar_type());
  if (x.dim() == 0) return full({}, value, x.options());
  AtenTensorHandle result = nullptr;
  if (integral) {
    SOFTKERN_STABLE(aoti_torch_scalar_to_tensor_int64, static_cast<int64_t>(value), &result);
  } else {
    SOFTKERN_STABLE(aoti_torch_scalar_to_tensor_float64, value, &result);
  }
  return Tensor(result);
}
/// The same for an op that takes integers of the whole range of int64.
inline Tensor operand(const Tensor& x, int64_t value) {
  if (isFloatingType(x.scalar_type())) return operand(x, static_cast<double>(value));
  AtenTensorHandle result = nullptr;
  SOFTKERN_STABLE(aoti_torch_scalar_to_tensor_int64, value, &result);
  return x.dim() == 0 ? Tensor(result).to(x.scalar_type()) : Tensor(result);
}

inline Tensor Tensor::to(ScalarType type) const {
  if (type == scalar_type()) return *this;
  return call<Tensor>("aten::to", "dtype", *this, type, false, false, std::optional<MemoryFormat>());
}
inline Tensor Tensor::to(DeviceType device, ScalarType type) const {
  return call<Tensor>("aten::to", "device", *this, torch::stable::Device(device), type, false, false,
                      std::optional<MemoryFormat>());
}
inline Tensor Tensor::contiguous() const {
  return is_contiguous() ? *this : call<Tensor>("aten::contiguous", "", *this, MemoryFormat::Contiguous);
}
inline Tensor Tensor::clone(MemoryFormat format) const {
  return call<Tensor>("aten::clone", "", *this, std::optional<MemoryFormat>(format));
}
inline Tensor Tensor::view(IntArrayRef sizes) const { return call<Tensor>("aten::view", "", *this, sizes); }
inline Tensor Tensor::view(ScalarType type) const { return call<Tensor>("aten::view", "dtype", *this, type); }
inline Tensor Tensor::expand(IntArrayRef sizes) const {
  return call<Tensor>("aten::expand", "", *this, sizes, false);
}
inline Tensor Tensor::expand_symint(std::initializer_list<c10::SymInt> sizes) const {
  DimVector known;
  for (const c10::SymInt& size : sizes) known.push_back(size.value);
  return expand(known);
}
inline Tensor Tensor::reshape(IntArrayRef sizes) const {
  return call<Tensor>("aten::reshape", "", *this, sizes);
}
inline Tensor Tensor::narrow(int64_t dim, int64_t start, int64_t length) const {
  return call<Tensor>("aten::narrow", "", *this, dim, start, length);
}
inline Tensor Tensor::select(int64_t dim, int64_t index) const {
  return call<Tensor>("aten::select", "int", *this, dim, index);
}
inline Tensor Tensor::squeeze(int64_t dim) const { return call<Tensor>("aten::squeeze", "dim", *this, dim); }
inline Tensor Tensor::unsqueeze(int64_t dim) const { return call<Tensor>("aten::unsqueeze", "", *this, dim); }
inline Tensor Tensor::movedim(int64_t from, int64_t to) const {
  return call<Tensor>("aten::movedim", "int", *this, from, to);
}
inline Tensor Tensor::t() const { return call<Tensor>("aten::t", "", *this); }
inline Tensor Tensor::gather(int64_t dim, const Tensor& index) const {
  return call<Tensor>("aten::gather", "", *this, dim, index, false);
}
inline Tensor Tensor::index_select(int64_t dim, const Tensor& index) const {
  return call<Tensor>("aten::index_select", "", *this, dim, index);
}
inline Tensor Tensor::index_copy_(int64_t dim, const Tensor& index, const Tensor& source) const {
  return call<Tensor>("aten::index_copy_", "", *this, dim, index, source);
}
inline Tensor Tensor::nonzero() const { return call<Tensor>("aten::nonzero", "", *this); }
inline Tensor Tensor::any() const { return call<Tensor>("aten::any", "", *this); }
inline Tensor Tensor::sum(int64_t dim) const {
  return call<Tensor>("aten::sum", "dim_IntList", *this, std::optional<Dims>(Dims{dim}), false, Dtype());
}
inline Tensor Tensor::abs() const { return call<Tensor>("aten::abs", "", *this); }
inline Tensor Tensor::amax() const { return call<Tensor>("aten::amax", "", *this, IntArrayRef(), false); }
inline Tensor Tensor::neg() const { return call<Tensor>("aten::neg", "", *this); }
inline Tensor Tensor::floor() const { return call<Tensor>("aten::floor", "", *this); }
inline Tensor Tensor::log2() const { return call<Tensor>("aten::log2", "", *this); }
inline Tensor Tensor::exp2() const { return call<Tensor>("aten::exp2", "", *this); }
inline Tensor Tensor::isnan() const { return call<Tensor>("aten::isnan", "", *this); }
inline Tensor Tensor::nan_to_num(double nan) const {
  return call<Tensor>("aten::nan_to_num", "", *this, std::optional<double>(nan), std::optional<double>(),
                      std::optional<double>());
}
inline Tensor Tensor::logical_not() const { return call<Tensor>("aten::logical_not", "", *this); }
inline Tensor Tensor::logical_and(const Tensor& other) const {
  return call<Tensor>("aten::logical_and", "", *this, other);
}
inline Tensor Tensor::logical_or(const Tensor& other) const {
  return call<Tensor>("aten::logical_or", "", *this, other);
}
inline Tensor Tensor::mul(const Tensor& other) const {
  return call<Tensor>("aten::mul", "Tensor", *this, other);
}
inline Tensor Tensor::mul(double other) const { return mul(operand(*this, other)); }
inline Tensor difference(const Tensor& a, const Tensor& b, double alpha) {
  AtenTensorHandle result = nullptr;
  SOFTKERN_STABLE(aoti_torch_aten_subtract_Tensor, a.handle(), b.handle(), alpha, &result);
  return Tensor(result);
}
/// Integers are small ones here, which float64 holds exactly: for them `alpha` may not be a double.
inline Tensor Tensor::add(const Tensor& other, int64_t alpha) const {
  if (isFloatingType(scalar_type())) return difference(*this, other, -static_cast<double>(alpha));
  return difference(to(kDouble), other.to(kDouble), -static_cast<double>(alpha)).to(scalar_type());
}
inline Tensor Tensor::add(int64_t other) const { return add(operand(*this, other), 1); }
inline Tensor Tensor::bitwise_left_shift(int64_t bits) const {
  return call<Tensor>("aten::bitwise_left_shift", "Tensor", *this, operand(*this, bits));
}
inline Tensor Tensor::clamp(double least, double most) const {
  return call<Tensor>("aten::clamp", "Tensor", *this, std::optional<Tensor>(operand(*this, least)),
                      std::optional<Tensor>(operand(*this, most)));
}
inline Tensor Tensor::clamp_min(int64_t least) const {
  return call<Tensor>("aten::clamp_min", "Tensor", *this, operand(*this, least));
}
inline Tensor Tensor::eq(int64_t other) const {
  return call<Tensor>("aten::eq", "Tensor", *this, operand(*this, other));
}
inline Tensor Tensor::ne(int64_t other) const {
  return call<Tensor>("aten::ne", "Tensor", *this, operand(*this, other));
}
inline Tensor Tensor::ne(double other) const {
  return call<Tensor>("aten::ne", "Tensor", *this, operand(*this, other));
}
inline Tensor Tensor::lt(int64_t other) const {
  return call<Tensor>("aten::lt", "Tensor", *this, operand(*this, other));
}
inline Tensor Tensor::ge(int64_t other) const {
  return call<Tensor>("aten::ge", "Tensor", *this, operand(*this, other));
}
inline Tensor Tensor::masked_fill(const Tensor& mask, int64_t value) const {
  return call<Tensor>("aten::masked_fill", "Tensor", *this, mask,
                      full({}, static_cast<double>(value), options()));
}
inline const Tensor& Tensor::copy_(const Tensor& source) const {
  SOFTKERN_STABLE(aoti_torch_copy_, handle(), source.handle(), /*non_blocking=*/0);
  return *this;
}
inline const Tensor& Tensor::zero_() const {
  SOFTKERN_STABLE(aoti_torch_zero_, handle());
  return *this;
}
inline const Tensor& Tensor::fill_(double value) const {
  SOFTKERN_STABLE(aoti_torch_aten_fill__Scalar, handle(), value);
  return *this;
}
inline const Tensor& Tensor::add_(const Tensor& other) const { return copy_(difference(*this, other, -1)); }
inline const Tensor& Tensor::mul_(const Tensor& other) const {
  call<Tensor>("aten::mul_", "Tensor", *this, other);
  return *this;
}
template <>
inline double Tensor::item<double>() const {
  double result = 0;
  SOFTKERN_STABLE(aoti_torch_item_float64, to(kDouble).handle(), &result);
  return result;
}
template <>
inline bool Tensor::item<bool>() const {
  bool result = false;
  SOFTKERN_STABLE(aoti_torch_item_bool, handle(), &result);
  return result;
}

inline Tensor operator*(const Tensor& a, const Tensor& b) { return a.mul(b); }
inline Tensor operator*(const Tensor& a, double b) { return a.mul(b); }
/// Of small integers, as in Tensor::add.
inline Tensor operator-(int64_t a, const Tensor& b) { return b.neg().add(a); }

inline Tensor mul(const Tensor& a, double b) { return a.mul(b); }
inline Tensor eq(const Tensor& a, int64_t b) { return a.eq(b); }
inline Tensor where(const Tensor& condition, const Tensor& a, const Tensor& b) {
  return call<Tensor>("aten::where", "self", condition, a, b);
}
inline Tensor reciprocal(const Tensor& x) { return call<Tensor>("aten::reciprocal", "", x); }
inline Tensor abs(const Tensor& x) { return x.abs(); }
inline Tensor max(const Tensor& x) { return call<Tensor>("aten::max", "", x); }
inline Tensor maximum(const Tensor& a, const Tensor& b) { return call<Tensor>("aten::maximum", "", a, b); }
inline Tensor clamp_min(const Tensor& x, int64_t least) { return x.clamp_min(least); }
inline Tensor isfinite(const Tensor& x) { return call<Tensor>("aten::isfinite", "", x); }
inline std::tuple<Tensor, Tensor> frexp(const Tensor& x) {
  return call<std::tuple<Tensor, Tensor>>("aten::frexp", "Tensor", x);
}
/// The norm of order 1: the sum of absolute values.
inline Tensor linalg_vector_norm(const Tensor& x, int /*order*/, IntArrayRef dims, bool keepdim,
                                 ScalarType type) {
  return call<Tensor>("aten::sum", "dim_IntList", x.abs(),
                      std::optional<Dims>(Dims(dims.begin(), dims.end())), keepdim, Dtype(type));
}

inline Tensor mm(const Tensor& a, const Tensor& b) { return call<Tensor>("aten::mm", "", a, b); }
inline void mm_out(const Tensor& out, const Tensor& a, const Tensor& b) {
  call<Tensor>("aten::mm", "out", a, b, out);
}
inline void mm_out(const Tensor& out, const Tensor& a, const Tensor& b, ScalarType type) {
  call<Tensor>("aten::mm", "dtype_out", a, b, type, out);
}
inline void addmm_out(const Tensor& out, const Tensor& self, const Tensor& a, const Tensor& b) {
  if (out.is_cpu()) {
    SOFTKERN_STABLE(aoti_torch_cpu_addmm_out, out.handle(), self.handle(), a.handle(), b.handle(), 1, 1);
  } else {
    out.copy_(difference(self, mm(a, b), -1));
  }
}
inline void addmm_out(const Tensor& out, const Tensor& self, const Tensor& a, const Tensor& b,
                      ScalarType type) {
  const Tensor product = empty(out.sizes(), out.options());
  mm_out(product, a, b, type);
  out.copy_(difference(self, product, -1));
}

enum class MemOverlap { No, Yes };
/// Whether two elements may share memory: a stride of 0, as torch asks it.
inline MemOverlap has_internal_overlap(const Tensor& x) {
  for (int64_t i = 0; i < x.dim(); ++i) {
    if (x.size(i) > 1 && x.stride(i) == 0) return MemOverlap::Yes;
  }
  return MemOverlap::No;
}

}  // namespace softkern_stable
}  // namespace at
