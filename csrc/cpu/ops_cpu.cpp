// SPDX-License-Identifier: Apache-2.0
// The ops for CPU tensors: allocation, layout, threads. The only torch-facing file in this folder.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/eq.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <c10/core/WrapDimMinimal.h>
#include <torch/library.h>

#include <atomic>
#include <cmath>
#include <memory>

#include "../checks.h"
#include "../ops.h"
#include "dispatch.h"

namespace softkern::cpu {
namespace {

using at::Tensor;

// Elements a thread should have before a second one pays: some 10 us of work, as in ATen.
constexpr int64_t kGrain = 32768;

ElementType element_type(const Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat: return kFloat;
    case at::kDouble: return kDouble;
    case at::kBFloat16: return kBFloat16;
    case at::kHalf: return kHalf;
    default: TORCH_CHECK(false, "softkern: expected a float32, float64, bfloat16 or float16 tensor, got ", x.scalar_type());
  }
}

at::ScalarType compute_type(const Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

/// Strides of the dims before and after `dim`, if each group walks memory in equal steps.
std::optional<Rows> as_rows(const Tensor& x, int64_t dim) {
  const auto step = [&](int64_t from, int64_t to, int64_t* stride) {
    int64_t expected = -1;
    *stride = 0;
    for (int64_t i = to - 1; i >= from; --i) {
      if (x.size(i) == 1) continue;
      if (expected == -1) {
        *stride = x.stride(i);
      } else if (x.stride(i) != expected) {
        return false;
      }
      expected = x.stride(i) * x.size(i);
    }
    return true;
  };
  Rows rows;
  rows.data = x.data_ptr();
  if (!step(0, dim, &rows.outer_stride) || !step(dim + 1, x.dim(), &rows.inner_stride)) return std::nullopt;
  rows.class_stride = x.size(dim) == 1 ? 1 : x.stride(dim);
  return rows;
}

/// A tensor whose rows the kernels can walk: the tensor itself, or a copy of it that `keep` holds.
Rows readable_rows(const Tensor& x, int64_t dim, Tensor& keep) {
  keep = x;
  if (const auto rows = as_rows(x, dim)) return *rows;
  keep = x.contiguous();
  return *as_rows(keep, dim);
}

struct Layout {
  Shape shape;
  int64_t rows;
};

Layout layout_of(const Tensor& x, int64_t dim) {
  int64_t inner = 1;
  for (int64_t i = dim + 1; i < x.dim(); ++i) inner *= x.size(i);
  const int64_t classes = x.size(dim);
  return {{classes, inner}, classes == 0 ? 0 : x.numel() / classes};
}

/// kernel(args, range) over all rows, in torch's own thread pool. Splitting by rows changes no bits.
template <class Args>
void run(const char* (*kernel)(const Args&, Range), const Args& args, const Layout& layout, size_t element_size,
         std::initializer_list<const Rows*> operands) {
  int strided = 0;
  for (const Rows* rows : operands) strided += rows->data != nullptr && rows->class_stride != 1;
  const bool needs_scratch = strided > 0 || element_size < sizeof(float);
  const size_t bytes = needs_scratch ? scratch_bytes(layout.shape, element_size, strided, true) : 0;
  std::atomic<const char*> isa{""};
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, layout.shape.classes));
  at::parallel_for(0, layout.rows, grain, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<char[]> scratch(bytes > 0 ? new char[bytes] : nullptr);
    isa.store(kernel(args, {begin, end, scratch.get()}), std::memory_order_relaxed);
  });
  set_last_isa(isa.load(std::memory_order_relaxed));
}

Tensor forward(const Tensor& self, int64_t dim, const char* (*Kernels::*kernel)(const ForwardArgs&, Range)) {
  const ElementType type = element_type(self);
  Tensor output = at::empty(self.sizes(), self.options().memory_format(at::MemoryFormat::Contiguous));
  dim = c10::maybe_wrap_dim(dim, self.dim());
  if (self.numel() == 0) return output;
  Tensor keep;
  const Tensor x = self.dim() == 0 ? self.view(1) : self;
  const Tensor y = self.dim() == 0 ? output.view(1) : output;
  const Layout layout = layout_of(x, dim);
  const ForwardArgs args{layout.shape, readable_rows(x, dim, keep), *as_rows(y, dim)};
  run(active().by_type[type].*kernel, args, layout, x.element_size(), {&args.input, &args.output});
  return output;
}

Tensor backward(const Tensor& grad_output, const Tensor& output, int64_t dim,
                const char* (*Kernels::*kernel)(const BackwardArgs&, Range)) {
  const ElementType type = element_type(output);
  TORCH_CHECK(grad_output.sizes() == output.sizes() && grad_output.scalar_type() == output.scalar_type(),
              "softkern: expected grad_output of shape ", output.sizes(), " and dtype ", output.scalar_type(),
              " as the output has, got ", grad_output.sizes(), " and ", grad_output.scalar_type());
  Tensor grad_input = at::empty(output.sizes(), output.options().memory_format(at::MemoryFormat::Contiguous));
  dim = c10::maybe_wrap_dim(dim, output.dim());
  if (output.numel() == 0) return grad_input;
  Tensor keep_g, keep_y;
  const bool scalar = output.dim() == 0;
  const Tensor g = scalar ? grad_output.view(1) : grad_output;
  const Tensor y = scalar ? output.view(1) : output;
  const Tensor dx = scalar ? grad_input.view(1) : grad_input;
  const Layout layout = layout_of(y, dim);
  const BackwardArgs args{layout.shape, readable_rows(g, dim, keep_g), readable_rows(y, dim, keep_y),
                          *as_rows(dx, dim)};
  run(active().by_type[type].*kernel, args, layout, y.element_size(),
      {&args.grad_output, &args.output, &args.grad_input});
  return grad_input;
}

Tensor softmax_cpu(const Tensor& self, int64_t dim) { return forward(self, dim, &Kernels::softmax); }
Tensor log_softmax_cpu(const Tensor& self, int64_t dim) { return forward(self, dim, &Kernels::log_softmax); }
Tensor softmax_backward_cpu(const Tensor& grad_output, const Tensor& output, int64_t dim) {
  return backward(grad_output, output, dim, &Kernels::softmax_backward);
}
Tensor log_softmax_backward_cpu(const Tensor& grad_output, const Tensor& output, int64_t dim) {
  return backward(grad_output, output, dim, &Kernels::log_softmax_backward);
}

/// f(T()) for the C++ type of a dtype.
template <class F>
auto with_type(at::ScalarType type, F f) {
  switch (type) {
    case at::kDouble: return f(double());
    case at::kBFloat16: return f(c10::BFloat16());
    case at::kHalf: return f(c10::Half());
    default: return f(float());
  }
}

Tensor scalar_of(double value, const Tensor& like, at::ScalarType type) {
  Tensor result = at::empty({}, like.options().dtype(type).memory_format(at::MemoryFormat::Contiguous));
  with_type(type, [&](auto zero) { *static_cast<decltype(zero)*>(result.data_ptr()) = static_cast<decltype(zero)>(value); });
  return result;
}

/// In double and in a fixed order, whatever the number of threads.
template <class A>
double sum_in_order(const A* x, int64_t n) {
  double part[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int k = 0; k < 8; ++k) part[k] += static_cast<double>(x[i + k]);
  }
  for (; i < n; ++i) part[i % 8] += static_cast<double>(x[i]);
  return ((part[0] + part[4]) + (part[1] + part[5])) + ((part[2] + part[6]) + (part[3] + part[7]));
}

struct Targets {
  bool in_range = true;
  double mass = 0;  // sum of w_y over the rows that count
};

template <class W>
Targets check_targets(const int64_t* target, int64_t rows, int64_t classes, int64_t ignore_index, const W* weight) {
  Targets result;
  int64_t counted = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t y = target[r];
    if (y == ignore_index) continue;
    if (y < 0 || y >= classes) {
      result.in_range = false;
      return result;
    }
    ++counted;
    if (weight != nullptr) result.mass += static_cast<double>(weight[y]);
  }
  if (weight == nullptr) result.mass = static_cast<double>(counted);
  return result;
}

/// Power of two that puts fp16 gradients where the format is densest. |A p - a| <= max |w| for class
/// indices; probabilities may be anything.
double half_storage_scale(const Tensor& weight, bool indices) {
  if (!indices) return 1;
  double largest = 1;
  if (weight.defined()) {
    const c10::Half* w = weight.const_data_ptr<c10::Half>();
    for (int64_t c = 0; c < weight.numel(); ++c) largest = std::max(largest, std::abs(static_cast<double>(w[c])));
  }
  return std::isfinite(largest) ? std::exp2(12 - std::ceil(std::log2(largest))) : 1;
}

std::tuple<Tensor, Tensor, Tensor> cross_entropy_forward_cpu(const Tensor& self, const Tensor& target,
                                                             const OptionalTensor& weight, int64_t reduction,
                                                             int64_t ignore_index, double label_smoothing,
                                                             bool need_grad) {
  TORCH_CHECK(takes_cross_entropy(self, target, weight, reduction, ignore_index, label_smoothing),
              "softkern::cross_entropy_forward: arguments that the CPU kernels don't take; call "
              "softkern.cross_entropy, which checks them and falls back");
  const int64_t dim = class_dim(self);
  const Layout layout = layout_of(self, dim);
  const bool indices = !same_shape(self, target);
  const at::ScalarType compute = compute_type(self);
  const Tensor w = weight.has_value() && weight->defined() ? weight->contiguous() : Tensor();

  Tensor keep_logits, keep_target;
  CrossEntropyArgs args{};
  args.shape = layout.shape;
  args.logits = readable_rows(self, dim, keep_logits);
  args.options = {ignore_index, label_smoothing};
  args.weight = w.defined() ? w.data_ptr() : nullptr;
  double mass = static_cast<double>(layout.rows);
  if (indices) {
    keep_target = target.to(at::kLong).contiguous();
    args.target = keep_target.const_data_ptr<int64_t>();
    const Targets checked = with_type(self.scalar_type(), [&](auto zero) {
      using W = decltype(zero);
      return check_targets(args.target, layout.rows, layout.shape.classes, ignore_index,
                           static_cast<const W*>(args.weight));
    });
    if (!checked.in_range) {
      // ATen finds the same target and raises its own exception.
      at::cross_entropy_loss(self, keep_target, weight, reduction, ignore_index, label_smoothing);
      TORCH_CHECK_INDEX(false, "softkern::cross_entropy: a target is out of bounds [0, ", layout.shape.classes, ")");
    }
    mass = checked.mass;
  } else {
    args.probabilities = readable_rows(target, dim, keep_target);
  }

  const double divisor = reduction == kMean ? mass : 1;
  const double storage =
      self.scalar_type() == at::kHalf ? half_storage_scale(w, indices) : 1 / divisor;
  args.grad_factor = storage;
  const Tensor losses = at::empty({layout.rows}, self.options().dtype(compute));
  args.loss = losses.data_ptr();
  Tensor grad = need_grad ? at::empty(self.sizes(), self.options().memory_format(at::MemoryFormat::Contiguous))
                          : at::empty({0}, self.options());
  if (need_grad) args.grad = *as_rows(grad, dim);
  run(active().by_type[element_type(self)].cross_entropy, args, layout, self.element_size(),
      {&args.logits, &args.probabilities, &args.grad});

  Tensor loss;
  if (reduction == kNone) {
    at::DimVector sizes(self.sizes());
    sizes.erase(sizes.begin() + dim);
    loss = losses.to(self.scalar_type()).view(sizes);
  } else {
    const double total = compute == at::kDouble ? sum_in_order(losses.const_data_ptr<double>(), layout.rows)
                                                : sum_in_order(losses.const_data_ptr<float>(), layout.rows);
    loss = scalar_of(total / divisor, self, self.scalar_type());
  }
  Tensor grad_scale = need_grad ? scalar_of(self.scalar_type() == at::kHalf ? 1 / (divisor * storage) : 1, self, compute)
                                : at::empty({0}, self.options().dtype(compute));
  return {loss, grad, grad_scale};
}

/// One factor, or one a row, in the compute type.
Tensor row_factors(const Tensor& grad_output, const Tensor& grad_scale, const Tensor& target, int64_t ignore_index,
                   const Layout& layout) {
  // Expanded gradients, as loss.sum() gives them, stay one factor.
  bool single = grad_output.numel() > 0;
  for (int64_t i = 0; i < grad_output.dim(); ++i) {
    single = single && (grad_output.size(i) == 1 || grad_output.stride(i) == 0);
  }
  const Tensor values = single ? grad_output.as_strided({1}, {1}) : grad_output.reshape(-1);
  const Tensor factors = at::mul(values.to(grad_scale.scalar_type()), grad_scale);
  const bool indices = target.numel() == layout.rows;
  if (!indices || at::isfinite(factors).all().item<bool>()) return factors;
  // Ignored rows are stored as zeros and stay zeros: 0 * inf must not make them NaN.
  return at::where(at::eq(target.reshape(-1), ignore_index), at::zeros({}, factors.options()), factors);
}

/// out = grad * (grad_output * grad_scale); out may be grad.
void scale_gradient(const Tensor& grad_output, const Tensor& grad, const Tensor& grad_scale, const Tensor& target,
                    int64_t ignore_index, const Tensor& out) {
  if (grad.numel() == 0) return;
  const int64_t dim = class_dim(grad);
  Layout layout = layout_of(grad, dim);
  TORCH_CHECK(grad_output.numel() == 1 || grad_output.numel() == layout.rows,
              "softkern::cross_entropy_backward: expected grad_output of one element or one for each of ",
              layout.rows, " rows, got ", grad_output.numel());
  const Tensor factors = row_factors(grad_output, grad_scale, target, ignore_index, layout);
  ScaleArgs args{};
  args.factor = factors.data_ptr();
  args.factor_step = factors.numel() == 1 ? 0 : 1;
  if (args.factor_step == 0) {
    if (out.is_same(grad) && factors.item<double>() == 1) return;
    // The classes of a sample lie together, whatever their order.
    layout = {{layout.shape.classes * layout.shape.inner, 1}, layout.rows / layout.shape.inner};
    args.input = {grad.data_ptr(), layout.shape.classes, 0, 1};
    args.output = {out.data_ptr(), layout.shape.classes, 0, 1};
  } else {
    args.input = *as_rows(grad, dim);
    args.output = *as_rows(out, dim);
  }
  args.shape = layout.shape;
  run(active().by_type[element_type(grad)].scale, args, layout, grad.element_size(), {&args.input, &args.output});
}

Tensor cross_entropy_backward_cpu(const Tensor& grad_output, const Tensor& grad, const Tensor& grad_scale,
                                  const Tensor& target, int64_t ignore_index) {
  Tensor out = at::empty(grad.sizes(), grad.options().memory_format(at::MemoryFormat::Contiguous));
  scale_gradient(grad_output, grad.contiguous(), grad_scale, target, ignore_index, out);
  return out;
}

void cross_entropy_backward_cpu_(const Tensor& grad_output, Tensor grad, const Tensor& grad_scale,
                                 const Tensor& target, int64_t ignore_index) {
  TORCH_CHECK(grad.is_contiguous(), "softkern::cross_entropy_backward_: expected a contiguous grad");
  scale_gradient(grad_output, grad, grad_scale, target, ignore_index, grad);
}

}  // namespace

TORCH_LIBRARY_IMPL(softkern, CPU, m) {
  m.impl("softmax", &softmax_cpu);
  m.impl("log_softmax", &log_softmax_cpu);
  m.impl("softmax_backward", &softmax_backward_cpu);
  m.impl("log_softmax_backward", &log_softmax_backward_cpu);
  m.impl("cross_entropy_forward", &cross_entropy_forward_cpu);
  m.impl("cross_entropy_backward", &cross_entropy_backward_cpu);
  m.impl("cross_entropy_backward_", &cross_entropy_backward_cpu_);
}

}  // namespace softkern::cpu
