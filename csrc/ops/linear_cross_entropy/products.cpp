// SPDX-License-Identifier: Apache-2.0
#include "products.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>

#include <algorithm>

#include "../rows.h"
#include "brgemm.h"

namespace softkern {
namespace {

/// f(first, count) for ranges of classes.
template <class F>
void for_each_range(int64_t classes, F f) {
  for (int64_t first = 0; first < classes; first += kCastClasses) {
    f(first, std::min(kCastClasses, classes - first));
  }
}

/// into = a b, or += a b, in one dtype.
void multiply(const Tensor& a, const Tensor& b, Tensor into, bool add) {
  if (add) {
    at::addmm_out(into, into, a, b);
  } else {
    at::mm_out(into, a, b);
  }
}
/// The same for 16-bit operands and float32.
void multiply_mixed(const Tensor& a, const Tensor& b, Tensor into, bool add) {
  if (add) {
    at::addmm_out(into, into, a, b, at::kFloat);
  } else {
    at::mm_out(into, a, b, at::kFloat);
  }
}

/// Whether this torch has multiply_mixed for the device: for CUDA it does.
bool has_mixed_products(const Tensor& x) {
  const c10::DispatchKey key = x.options().computeDispatchKey();
  const auto has = [&](const char* op) {
    const auto found = c10::Dispatcher::singleton().findSchema({op, "dtype_out"});
    return found.has_value() && found->hasKernelForDispatchKey(key);
  };
  return has("aten::mm") && has("aten::addmm");
}

}  // namespace

Products::Products(const Tensor& input) : compute_(compute_type(input)) {
  if (input.scalar_type() == compute_) {
    way_ = Way::kSame;
  } else if (has_mixed_products(input)) {
    way_ = Way::kMixed;
  } else if (input.is_cpu() && input.scalar_type() == at::kBFloat16 && cpu::has_brgemm()) {
    way_ = Way::kPacked;
  } else {
    way_ = Way::kCast;
  }
}

void Products::logits(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& out) const {
  switch (way_) {
    case Way::kSame:
      multiply(x, w.t(), out, false);
      break;
    case Way::kMixed:
      multiply_mixed(x, w.t(), out, false);
      break;
    case Way::kPacked:
      cpu::product_nt(x, w, out);
      break;
    case Way::kCast: {
      const Tensor wide = x.to(compute_);
      for_each_range(w.size(0), [&](int64_t first, int64_t count) {
        multiply(wide, w.narrow(0, first, count).to(compute_).t(), out.narrow(1, first, count), false);
      });
      break;
    }
  }
  if (bias.defined()) out.add_(bias);
}

void Products::input_gradient(const Tensor& dz, const Tensor& w, const Tensor& into, bool add) const {
  const bool final = into.scalar_type() != compute_;
  if (way_ == Way::kSame || (narrows() && final)) return multiply(dz, w, into, add);
  if (way_ == Way::kMixed) return multiply_mixed(dz, w, into, add);
  if (way_ == Way::kPacked) return cpu::product_nn(dz, w, into, add);
  const Tensor sum = final ? at::empty(into.sizes(), into.options().dtype(compute_)) : into;
  for_each_range(w.size(0), [&](int64_t first, int64_t count) {
    multiply(dz.narrow(1, first, count), w.narrow(0, first, count).to(compute_), sum, add || first > 0);
  });
  if (final) into.copy_(sum);
}

void Products::weight_gradient(const Tensor& dz, const Tensor& x, const Tensor& into, bool add) const {
  const bool final = into.scalar_type() != compute_;
  if (way_ == Way::kSame || (narrows() && final)) return multiply(dz.t(), x, into, add);
  if (way_ == Way::kMixed) return multiply_mixed(dz.t(), x, into, add);
  if (way_ == Way::kPacked) return cpu::product_tn(dz, x, into, add);
  const Tensor wide = x.to(compute_);
  if (!final) return multiply(dz.t(), wide, into, add);
  for_each_range(dz.size(1), [&](int64_t first, int64_t count) {
    into.narrow(0, first, count).copy_(at::mm(dz.narrow(1, first, count).t(), wide));
  });
}

}  // namespace softkern
