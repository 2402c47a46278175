// SPDX-License-Identifier: Apache-2.0
// cross_entropy of CPU tensors.
#include "../cross_entropy/call.h"

#include "row_losses.h"

#include <ATen/ops/eq.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <limits>
#include <vector>

#include "launch.h"

namespace softkern::cpu {
namespace {

/// Calls f(T()) with the C++ type T of a dtype.
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

void set_scalar(const Tensor& scalar, double value) {
  with_type(scalar.scalar_type(), [&](auto zero) {
    *static_cast<decltype(zero)*>(scalar.data_ptr()) = static_cast<decltype(zero)>(value);
  });
}

/// The sum of w_y over the rows that are not ignored, in an order that does not depend on the number of
/// threads. NaN if all these weights are 0: the mean is then 0/0, even if label smoothing alone would make it
/// x/0.
template <class T>
double sum_of_weights(const T* weight, const int64_t* target, int64_t rows, int64_t ignore_index) {
  // Consecutive rows of a block go to different sums: in one sum, each addition would wait for the previous
  // one.
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
  bool weighs = false;
  double sum = 0;
  for (const Block& block : call.blocks) {
    weighs = weighs || block.weighs;
    sum += (block.sum[0] + block.sum[1]) + (block.sum[2] + block.sum[3]);
  }
  return weighs ? sum : std::numeric_limits<double>::quiet_NaN();
}

/// Counts the targets of all rows, with several threads if there are enough rows.
TargetCounts count_all_targets(const Kernels& kernels, const CrossEntropyCall& call) {
  struct Count {
    const Kernels& kernels;
    const int64_t* y;
    int64_t classes, ignore_index;
    std::atomic<int64_t> outside{0}, counted{0};
  } count{kernels, call.target.const_data_ptr<int64_t>(), call.classes(), call.options.ignore_index};
  const auto part = [](int64_t begin, int64_t end, void* context) {
    Count& c = *static_cast<Count*>(context);
    const TargetCounts found = c.kernels.count_targets(c.y + begin, end - begin, c.classes, c.ignore_index);
    c.outside += found.outside;
    c.counted += found.counted;
  };
  constexpr int64_t kTargetGrain = 32768;
  if (call.layout.rows > kTargetGrain) {
    torch_parallel_for(0, call.layout.rows, kTargetGrain, part, &count);
  } else {
    part(0, call.layout.rows, &count);
  }
  return {count.outside, count.counted};
}

/// The factors of the gradient rows: one factor for all rows, or one for each.
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
                    const Tensor& target, int64_t ignore_index) {
  const double scale = first_value(grad_scale);
  if (is_one_factor(grad_output)) {
    const double factor = first_value(grad_output) * scale;
    if (std::isfinite(factor)) return {factor, Tensor()};
  }
  Tensor factors =
      at::mul(grad_output.to(grad_scale.scalar_type()).expand(target_sizes(grad)).reshape(-1), scale);
  if (target.defined()) {
    // Ignored rows are stored as zeros and must stay zeros: 0 * inf would make them NaN.
    factors = at::where(at::eq(target.to(at::kLong).reshape(-1), ignore_index),
                        at::zeros({}, factors.options()), factors);
  }
  return {std::nullopt, factors};
}

class CpuKernels final : public CrossEntropyKernels {
 public:
  at::ScalarType index_type(at::ScalarType) const override { return at::kLong; }

  Divisor check_targets(const CrossEntropyCall& call) const override {
    const TargetCounts counts = count_all_targets(kernels_of(call.logits), call);
    if (counts.outside != 0) raise_out_of_bounds(call);
    if (call.options.reduction != kMean) return {{1}, {1}};
    auto weight = static_cast<double>(counts.counted);
    if (counts.counted == 0) weight = std::numeric_limits<double>::quiet_NaN();
    if (call.weight.defined()) {
      weight = with_type(call.weight.scalar_type(), [&](auto zero) {
        return sum_of_weights(static_cast<const decltype(zero)*>(call.weight.const_data_ptr()),
                              call.target.const_data_ptr<int64_t>(), call.layout.rows,
                              call.options.ignore_index);
      });
    }
    return {{weight}, {1 / weight}};
  }

  Number half_storage(const CrossEntropyCall& call) const override {
    double largest = 1;
    if (!call.indices && call.layout.rows > 0) {
      Tensor keep;
      const Rows probabilities = readable_rows(call.target, call.dim, keep);
      const std::unique_ptr<float[]> masses(new float[call.layout.rows]);
      const MassArgs args{call.layout.shape, probabilities, masses.get()};
      run(kernels_of(call.logits).mass, args, call.layout);
      float most[16] = {};  // with one maximum, each comparison would wait for the previous one
      for (int64_t r = 0; r < call.layout.rows; ++r) most[r % 16] = std::max(most[r % 16], masses[r]);
      largest = std::max<double>(largest, *std::max_element(most, most + 16));
    }
    if (call.weight.defined()) {
      const c10::Half* w = call.weight.const_data_ptr<c10::Half>();
      double heaviest = 1;
      for (int64_t c = 0; c < call.weight.numel(); ++c)
        heaviest = std::max(heaviest, std::abs(static_cast<double>(w[c])));
      largest *= heaviest;
    }
    return {std::isfinite(largest) ? std::exp2(15 - std::ceil(std::log2(largest))) : 1};
  }

  void rows(const CrossEntropyCall& call, const Number& factor, const Tensor& losses,
            const Tensor& grad) const override {
    Tensor keep_logits, keep_target;
    CrossEntropyArgs args{};
    args.shape = call.layout.shape;
    args.logits = readable_rows(call.logits, call.dim, keep_logits);
    if (call.indices) {
      args.target = call.target.const_data_ptr<int64_t>();
    } else {
      args.probabilities = readable_rows(call.target, call.dim, keep_target);
    }
    args.weight = call.weight.defined() ? call.weight.const_data_ptr() : nullptr;
    args.options = call.options;
    args.loss = losses.data_ptr();
    args.grad_factor = factor.value;
    if (grad.defined()) {
      args.grad = *as_rows(grad, call.dim, grad.data_ptr());
      args.stream = !grad.is_same(call.logits) && streams(grad.nbytes());
    }
    run(kernels_of(call.logits).cross_entropy, args, call.layout);
  }
  bool stores_narrow() const override { return false; }

  void row_losses(const RowCall& call, const RowOutputs& outputs, const RowGradients& upstream,
                  const Tensor& grad) const override {
    cpu::row_losses(call, outputs, upstream, grad);
  }
  void merge_rows(const RowCall& call, const RowParts& parts, const RowOutputs& outputs) const override {
    cpu::merge_rows(call, parts, outputs);
  }

  Divisor weight_of_rows(const RowCall& call) const override { return cpu::weight_of_rows(call); }

  void reduce(const Tensor& losses, const Number& divisor, const Number& storage, const Tensor& loss,
              const Tensor& grad_scale) const override {
    const double total = kernels_of(losses).sum_losses(losses.const_data_ptr(), losses.numel());
    set_scalar(loss, total / divisor.value);
    if (!grad_scale.defined()) return;
    set_scalar(grad_scale, storage.value != 0 ? 1 / (divisor.value * storage.value) : 1);
  }

  void scale(const Tensor& grad_output, const Tensor& grad, const Tensor& grad_scale, const Tensor& target,
             int64_t ignore_index, const Tensor& out) const override {
    const int64_t dim = class_dim(grad);
    Layout layout = layout_of(grad, dim);
    const Factors factors = row_factors(grad_output, grad, grad_scale, target, ignore_index);
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
      // The elements of a sample are contiguous and all have the same factor, so their order does not matter.
      layout = {{layout.shape.classes * layout.shape.inner, 1}, layout.rows / layout.shape.inner};
      args.input = {grad.data_ptr(), layout.shape.classes, 0, 1};
      args.output = {out.data_ptr(), layout.shape.classes, 0, 1};
    } else {
      args.input = *as_rows(grad, dim, grad.data_ptr());
      args.output = *as_rows(out, dim, out.data_ptr());
    }
    args.shape = layout.shape;
    args.stream = !out.is_same(grad) && streams(out.nbytes());
    run(kernels_of(grad).scale, args, layout);
  }

  void set(const Tensor& scalar, double value) const override { set_scalar(scalar, value); }
  Tensor new_output(const Tensor& like) const override { return cpu::new_output(like); }

 private:
  static const Kernels& kernels_of(const Tensor& x) { return *active().by_type[element_type(x)]; }
};

const CpuKernels kKernels;
[[maybe_unused]] const bool kCrossEntropyNamed = set_cross_entropy_kernels(Backend::kCpu, kKernels);

}  // namespace
}  // namespace softkern::cpu
