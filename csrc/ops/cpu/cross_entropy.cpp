// SPDX-License-Identifier: Apache-2.0
// cross_entropy of CPU tensors.
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/eq.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "../cross_entropy.h"
#include "cpu.h"
#include "launch.h"

namespace softkern::cpu {
namespace {

/// f(T()) for the C++ type of a dtype.
template <class F>
auto with_type(at::ScalarType type, F f) {
  switch (type) {
    case at::kDouble:
      return f(double());
    case at::kBFloat16:
      return f(c10::BFloat16());
    case at::kHalf:
      return f(c10::Half());
    default:
      return f(float());
  }
}

Tensor scalar_of(double value, const Tensor& like, at::ScalarType type) {
  Tensor result = at::empty({}, like.options().dtype(type).memory_format(at::MemoryFormat::Contiguous));
  with_type(type, [&](auto zero) {
    *static_cast<decltype(zero)*>(result.data_ptr()) = static_cast<decltype(zero)>(value);
  });
  return result;
}

struct Targets {
  bool in_range;
  bool weightless;  // no row counts, or none has a weight
  double mass;      // sum of w_y over the rows that count
};

/// weightless and mass, of targets in range; in a fixed order, whatever the number of threads.
template <class T>
void add_up_weights(const T* weight, const int64_t* target, int64_t rows, int64_t ignore_index,
                    Targets& result) {
  // Rows of a block go to its sums in turn: one sum would have each addition wait for the one before.
  constexpr int64_t kBlock = 4096, kSums = 4;
  struct Block {
    double sum[kSums] = {};
    bool weighs = false;
  };
  struct Call {
    const T* weight;
    const int64_t* target;
    int64_t rows, ignore_index;
    std::vector<Block> blocks;
  } call{weight, target, rows, ignore_index, std::vector<Block>((rows + kBlock - 1) / kBlock)};
  const auto part = [](int64_t begin, int64_t end, void* context) {
    Call& c = *static_cast<Call*>(context);
    for (int64_t b = begin; b < end; ++b) {
      Block& block = c.blocks[b];
      const int64_t stop = std::min(c.rows, (b + 1) * kBlock);
      for (int64_t r = b * kBlock; r < stop; ++r) {
        const bool counts = c.target[r] != c.ignore_index;
        const double own = counts ? static_cast<double>(c.weight[counts ? c.target[r] : 0]) : 0.0;
        block.sum[r % kSums] += own;
        block.weighs = block.weighs || own != 0;
      }
    }
  };
  const auto count = static_cast<int64_t>(call.blocks.size());
  if (count > 1) {
    torch_parallel_for(0, count, 4, part, &call);
  } else {
    part(0, count, &call);
  }
  result.weightless = true;
  result.mass = 0;
  for (const Block& block : call.blocks) {
    result.weightless = result.weightless && !block.weighs;
    result.mass += (block.sum[0] + block.sum[1]) + (block.sum[2] + block.sum[3]);
  }
}

Targets check_targets(const Kernels& kernels, const Tensor& target, int64_t classes, int64_t ignore_index,
                      const Tensor& weight) {
  const int64_t* y = target.const_data_ptr<int64_t>();
  const int64_t rows = target.numel();
  struct Count {
    const Kernels& kernels;
    const int64_t* y;
    int64_t classes, ignore_index;
    std::atomic<int64_t> outside{0}, counted{0};
  } count{kernels, y, classes, ignore_index};
  const auto part = [](int64_t begin, int64_t end, void* context) {
    Count& c = *static_cast<Count*>(context);
    const TargetCounts found = c.kernels.count_targets(c.y + begin, end - begin, c.classes, c.ignore_index);
    c.outside += found.outside;
    c.counted += found.counted;
  };
  constexpr int64_t kTargetGrain = 32768;
  if (rows > kTargetGrain) {
    torch_parallel_for(0, rows, kTargetGrain, part, &count);
  } else {
    part(0, rows, &count);
  }
  Targets result{count.outside == 0, count.counted == 0, static_cast<double>(count.counted)};
  if (!result.in_range || !weight.defined()) return result;
  with_type(weight.scalar_type(), [&](auto zero) {
    const auto* w = static_cast<const decltype(zero)*>(weight.const_data_ptr());
    add_up_weights(w, y, rows, ignore_index, result);
  });
  return result;
}

/// Power of two that puts fp16 gradients where the format has most digits: |A p - a| is at most the largest
/// mass of a row, and 2^15 is the format's largest power.
double half_storage_scale(const Tensor& weight, const CrossEntropyArgs& call, const Layout& layout) {
  double largest = 1;
  if (call.probabilities.data != nullptr && layout.rows > 0) {
    const std::unique_ptr<float[]> masses(new float[layout.rows]);
    const MassArgs args{layout.shape, call.probabilities, masses.get()};
    run(active().by_type[kHalf]->mass, args, layout);
    float most[16] = {};  // one maximum would have each comparison wait for the one before
    for (int64_t r = 0; r < layout.rows; ++r) most[r % 16] = std::max(most[r % 16], masses[r]);
    largest = std::max<double>(largest, *std::max_element(most, most + 16));
  }
  if (weight.defined()) {
    const c10::Half* w = weight.const_data_ptr<c10::Half>();
    double heaviest = 0;
    for (int64_t c = 0; c < weight.numel(); ++c)
      heaviest = std::max(heaviest, std::abs(static_cast<double>(w[c])));
    largest *= std::max(1.0, heaviest);
  }
  return std::isfinite(largest) ? std::exp2(15 - std::ceil(std::log2(largest))) : 1;
}

/// loss and grad_scale; the gradient goes to `grad`, which may be self, if that is defined.
std::tuple<Tensor, Tensor> loss_and_gradient(const Tensor& self, const Tensor& target,
                                             const OptionalTensor& weight, int64_t reduction,
                                             int64_t ignore_index, double label_smoothing,
                                             const std::function<Tensor()>& make_grad) {
  const bool need_grad = static_cast<bool>(make_grad);
  TORCH_CHECK(takes_cross_entropy(self, target, weight, reduction, ignore_index, label_smoothing),
              "softkern::cross_entropy_forward: arguments that the CPU kernels don't take; call "
              "softkern.cross_entropy, which checks them and falls back");
  const int64_t dim = class_dim(self);
  const Layout layout = layout_of(self, dim);
  const bool indices = !same_shape(self, target);
  const at::ScalarType compute = compute_type(self);
  const Tensor w = weight.has_value() && weight->defined() ? weight->contiguous() : Tensor();

  const Kernels& kernels = *active().by_type[element_type(self)];
  Tensor keep_logits, keep_target;
  CrossEntropyArgs args{};
  args.shape = layout.shape;
  args.logits = readable_rows(self, dim, keep_logits);
  args.options = {ignore_index, label_smoothing};
  args.weight = w.defined() ? w.const_data_ptr() : nullptr;
  double mass = static_cast<double>(layout.rows);
  if (indices) {
    keep_target = target.to(at::kLong).contiguous();
    args.target = keep_target.const_data_ptr<int64_t>();
    const Targets checked = check_targets(kernels, keep_target, layout.shape.classes, ignore_index, w);
    if (!checked.in_range) {
      // ATen finds the same target and raises its own exception.
      at::cross_entropy_loss(self, keep_target, weight, reduction, ignore_index, label_smoothing);
      TORCH_CHECK_INDEX(false, "softkern::cross_entropy: a target is out of bounds [0, ",
                        layout.shape.classes, ")");
    }
    // Without any weight there is no mean: 0/0, also where label smoothing alone would make it x/0.
    mass = checked.weightless ? std::numeric_limits<double>::quiet_NaN() : checked.mass;
  } else {
    args.probabilities = readable_rows(target, dim, keep_target);
  }

  const double divisor = reduction == kMean ? mass : 1;
  const bool scaled_later = need_grad && self.scalar_type() == at::kHalf;
  const double storage = scaled_later ? half_storage_scale(w, args, layout) : 1 / divisor;
  args.grad_factor = storage;
  const Tensor losses = at::empty({layout.rows}, self.options().dtype(compute));
  args.loss = losses.data_ptr();
  Tensor grad;
  if (need_grad) {
    grad = make_grad();  // after the checks: what is refused is not written to
    args.grad = *as_rows(grad, dim, grad.data_ptr());
    args.stream = !grad.is_same(self) && streams(grad.nbytes());
  }
  run(kernels.cross_entropy, args, layout);

  Tensor loss;
  if (reduction == kNone) {
    loss = losses.to(self.scalar_type()).view(target_sizes(self));
  } else {
    const double total = kernels.sum_losses(args.loss, layout.rows);
    loss = scalar_of(total / divisor, self, self.scalar_type());
  }
  Tensor grad_scale = need_grad ? scalar_of(scaled_later ? 1 / (divisor * storage) : 1, self, compute)
                                : at::empty({0}, self.options().dtype(compute));
  return {loss, grad_scale};
}

/// What gradient rows are multiplied by: one factor for all of them, or one each.
struct Factors {
  std::optional<double> single;
  Tensor by_row;  // compute type
};

double first_value(const Tensor& x) {
  return with_type(x.scalar_type(), [&](auto zero) {
    return static_cast<double>(*static_cast<const decltype(zero)*>(x.const_data_ptr()));
  });
}

Factors row_factors(const Tensor& grad_output, const Tensor& grad, const Tensor& grad_scale,
                    const Tensor& target, int64_t ignore_index, const Layout& layout) {
  TORCH_CHECK(grad_output.device().is_cpu() && takes_dtype(grad_output.scalar_type()) &&
                  (grad_output.numel() == 1 || grad_output.numel() == layout.rows),
              "softkern::cross_entropy_backward: expected a floating-point grad_output on the CPU with one "
              "element or one for each of ",
              layout.rows, " rows, got ", grad_output.numel(), " of ", grad_output.scalar_type());
  const double scale = first_value(grad_scale);
  if (is_one_factor(grad_output)) {
    const double factor = first_value(grad_output) * scale;
    if (std::isfinite(factor)) return {factor, Tensor()};
  }
  Tensor factors =
      at::mul(grad_output.to(grad_scale.scalar_type()).expand(target_sizes(grad)).reshape(-1), scale);
  if (!same_shape(grad, target)) {
    // Ignored rows are stored as zeros and stay zeros: 0 * inf must not make them NaN.
    factors = at::where(at::eq(target.to(at::kLong).reshape(-1), ignore_index),
                        at::zeros({}, factors.options()), factors);
  }
  return {std::nullopt, factors};
}

/// out = grad * (grad_output * grad_scale); out may be grad.
void scale_gradient(const Tensor& grad_output, const Tensor& grad, const Tensor& grad_scale,
                    const Tensor& target, int64_t ignore_index, const Tensor& out) {
  if (grad.numel() == 0) return;
  const int64_t dim = class_dim(grad);
  Layout layout = layout_of(grad, dim);
  const Factors factors = row_factors(grad_output, grad, grad_scale, target, ignore_index, layout);
  if (out.is_same(grad) && factors.single == 1.0) return;
  ScaleArgs args{};
  const double single = factors.single.value_or(0);
  const float single_float = static_cast<float>(single);
  if (factors.single.has_value()) {
    args.factor = compute_type(grad) == at::kDouble ? static_cast<const void*>(&single) : &single_float;
  } else {
    args.factor = factors.by_row.const_data_ptr();
    args.factor_step = 1;
  }
  if (factors.single.has_value() && grad.is_contiguous() && out.is_contiguous()) {
    // The classes of a sample lie together, whatever their order.
    layout = {{layout.shape.classes * layout.shape.inner, 1}, layout.rows / layout.shape.inner};
    args.input = {grad.data_ptr(), layout.shape.classes, 0, 1};
    args.output = {out.data_ptr(), layout.shape.classes, 0, 1};
  } else {
    args.input = *as_rows(grad, dim, grad.data_ptr());
    args.output = *as_rows(out, dim, out.data_ptr());
  }
  args.shape = layout.shape;
  args.stream = !out.is_same(grad) && streams(out.nbytes());
  run(active().by_type[element_type(grad)]->scale, args, layout);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> cross_entropy_forward(const Tensor& self, const Tensor& target,
                                                         const OptionalTensor& weight, int64_t reduction,
                                                         c10::SymInt ignore_index, double label_smoothing,
                                                         bool need_grad) {
  Tensor grad;
  const auto fresh = [&] { return grad = new_output(self); };
  auto [loss, grad_scale] =
      loss_and_gradient(self, target, weight, reduction, as_int(ignore_index), label_smoothing,
                        need_grad ? std::function<Tensor()>(fresh) : std::function<Tensor()>());
  if (!need_grad) grad = at::empty({0}, self.options());
  return {loss, grad, grad_scale};
}

std::tuple<Tensor, Tensor> cross_entropy_forward_(Tensor self, const Tensor& target,
                                                  const OptionalTensor& weight, int64_t reduction,
                                                  c10::SymInt ignore_index, double label_smoothing) {
  check_writable_logits(self);
  return loss_and_gradient(self, target, weight, reduction, as_int(ignore_index), label_smoothing,
                           [&] { return self; });
}

Tensor cross_entropy_backward(const Tensor& grad_output, const Tensor& grad, const Tensor& grad_scale,
                              const Tensor& target, c10::SymInt ignore_index) {
  Tensor out = new_output(grad);
  scale_gradient(grad_output, grad.contiguous(), grad_scale, target, as_int(ignore_index), out);
  return out;
}

void cross_entropy_backward_(const Tensor& grad_output, Tensor grad, const Tensor& grad_scale,
                             const Tensor& target, c10::SymInt ignore_index) {
  check_writable_grad(grad);
  scale_gradient(grad_output, grad, grad_scale, target, as_int(ignore_index), grad);
}

}  // namespace softkern::cpu
