// SPDX-License-Identifier: Apache-2.0
// The types of at:: and c10:: that csrc/ops names, without torch's C++ library. The namespaces are inline, so
// that no symbol has the name of one of torch's.
#pragma once

#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/core/DeviceType.h>
#include <torch/headeronly/core/Layout.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>
#include <torch/headeronly/util/HeaderOnlyArrayRef.h>

#include <cstdint>
#include <initializer_list>
#include <ostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace softkern::stable {

template <class... Parts>
std::string joined(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

}  // namespace softkern::stable

// torch's own exceptions are classes of its C++ library. For those of the standard library, pybind11 raises
// the same exceptions in Python.
#define SOFTKERN_STABLE_CHECK(Exception, condition, ...) \
  if (condition) {                                       \
  } else                                                 \
    throw Exception(::softkern::stable::joined(__VA_ARGS__))
#define TORCH_CHECK(condition, ...) SOFTKERN_STABLE_CHECK(std::runtime_error, condition, __VA_ARGS__)
#define TORCH_CHECK_INDEX(condition, ...) SOFTKERN_STABLE_CHECK(std::out_of_range, condition, __VA_ARGS__)
#define TORCH_CHECK_VALUE(condition, ...) SOFTKERN_STABLE_CHECK(std::invalid_argument, condition, __VA_ARGS__)
#define TORCH_INTERNAL_ASSERT(condition) TORCH_CHECK(condition, "softkern: expected " #condition)

namespace c10 {
inline namespace softkern_stable {

/// A size that may be symbolic elsewhere. Here it is known: Python computes the shapes of fake tensors.
struct SymBool {
  bool value;
  bool expect_true(const char*, int64_t) const { return value; }
};
struct SymInt {
  int64_t value = 0;
  SymInt() = default;
  SymInt(int64_t known) : value(known) {}
  int64_t guard_int(const char*, int64_t) const { return value; }
  SymBool sym_eq(const SymInt& other) const { return {value == other.value}; }
  friend bool operator==(const SymInt& a, const SymInt& b) { return a.value == b.value; }
  friend bool operator!=(const SymInt& a, const SymInt& b) { return a.value != b.value; }
  friend bool operator<(const SymInt& a, const SymInt& b) { return a.value < b.value; }
  friend bool operator>(const SymInt& a, const SymInt& b) { return a.value > b.value; }
  friend bool operator<=(const SymInt& a, const SymInt& b) { return a.value <= b.value; }
  friend bool operator>=(const SymInt& a, const SymInt& b) { return a.value >= b.value; }
  friend std::ostream& operator<<(std::ostream& out, const SymInt& x) { return out << x.value; }
};
#define TORCH_GUARD_OR_FALSE(condition) ((condition).value)

inline std::string DeviceTypeName(DeviceType type, bool /*lower_case*/) {
  switch (type) {
    case DeviceType::CPU:
      return "cpu";
    case DeviceType::CUDA:
      return "cuda";
    case DeviceType::XPU:
      return "xpu";
    case DeviceType::MPS:
      return "mps";
    case DeviceType::Meta:
      return "meta";
    default:
      return "device type " + std::to_string(static_cast<int>(type));
  }
}

/// Of tensors that kernels see. Python's key is gone by then.
enum class DispatchKey { CPU, CUDA, XPU, Python };
struct DispatchKeySet {
  explicit DispatchKeySet(DispatchKey own) : key(own) {}
  bool has(DispatchKey other) const { return key == other; }
  DispatchKey key;
};

using DeviceIndex = int8_t;

class Device {
 public:
  Device(DeviceType type, int index = -1) : type_(type), index_(static_cast<DeviceIndex>(index)) {}
  DeviceType type() const { return type_; }
  DeviceIndex index() const { return index_; }
  bool has_index() const { return index_ >= 0; }
  bool is_cpu() const { return type_ == DeviceType::CPU; }
  bool is_cuda() const { return type_ == DeviceType::CUDA; }
  friend bool operator==(Device a, Device b) { return a.type_ == b.type_ && a.index_ == b.index_; }
  friend bool operator!=(Device a, Device b) { return !(a == b); }
  friend std::ostream& operator<<(std::ostream& out, Device x) {
    out << DeviceTypeName(x.type_, true);
    return x.has_index() ? out << ':' << static_cast<int>(x.index_) : out;
  }

 private:
  DeviceType type_;
  DeviceIndex index_;
};

inline int64_t maybe_wrap_dim(int64_t dim, int64_t dims) {
  const int64_t most = dims == 0 ? 1 : dims;
  TORCH_CHECK_INDEX(dim >= -most && dim < most, "Dimension out of range (expected to be in range of [", -most,
                    ", ", most - 1, "], but got ", dim, ")");
  return dim < 0 ? dim + most : dim;
}

}  // namespace softkern_stable
}  // namespace c10

namespace at {
inline namespace softkern_stable {

using c10::Device;
using c10::DeviceType;
using c10::kCPU;
using c10::kStrided;
using c10::Layout;
using c10::MemoryFormat;
using c10::ScalarType;

constexpr auto kFloat = ScalarType::Float;
constexpr auto kDouble = ScalarType::Double;
constexpr auto kBFloat16 = ScalarType::BFloat16;
constexpr auto kHalf = ScalarType::Half;
constexpr auto kLong = ScalarType::Long;
constexpr auto kInt = ScalarType::Int;
constexpr auto kByte = ScalarType::Byte;
constexpr auto kBool = ScalarType::Bool;

/// Of the dtypes that linear_cross_entropy computes in.
inline size_t elementSize(ScalarType type) { return type == kDouble ? 8 : type == kFloat ? 4 : 2; }
inline bool isFloatingType(ScalarType type) {
  // The others of 8 bits and less are no dtypes of logits, nor of class indices.
  return type == kFloat || type == kDouble || type == kBFloat16 || type == kHalf;
}
inline bool isComplexType(ScalarType type) {
  return type == ScalarType::ComplexHalf || type == ScalarType::ComplexFloat ||
         type == ScalarType::ComplexDouble;
}

class DimVector;

class IntArrayRef : public c10::HeaderOnlyArrayRef<int64_t> {
 public:
  using c10::HeaderOnlyArrayRef<int64_t>::HeaderOnlyArrayRef;
  IntArrayRef(const DimVector& sizes);
  friend bool operator==(IntArrayRef a, IntArrayRef b) { return a.equals(b); }
  friend std::ostream& operator<<(std::ostream& out, IntArrayRef sizes) {
    out << '[';
    for (size_t i = 0; i < sizes.size(); ++i) out << (i > 0 ? ", " : "") << sizes[i];
    return out << ']';
  }
};

class DimVector : public std::vector<int64_t> {
 public:
  using std::vector<int64_t>::vector;
  explicit DimVector(IntArrayRef sizes) : std::vector<int64_t>(sizes.begin(), sizes.end()) {}
};

inline IntArrayRef::IntArrayRef(const DimVector& sizes) : IntArrayRef(sizes.data(), sizes.size()) {}

}  // namespace softkern_stable
}  // namespace at

/// Kernels are not traced; Python asks before it calls them.
namespace at::tracer::impl {
inline namespace softkern_stable {
inline bool is_dispatch_enabled() { return false; }
}  // namespace softkern_stable
}  // namespace at::tracer::impl

namespace c10 {
inline namespace softkern_stable {
inline SymBool sym_equals(at::IntArrayRef a, at::IntArrayRef b) { return {a == b}; }
}  // namespace softkern_stable
}  // namespace c10
