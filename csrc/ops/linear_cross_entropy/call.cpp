// SPDX-License-Identifier: Apache-2.0
#include "call.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>

namespace softkern {
namespace {

/// A tensor of the shape of the logits without their memory: for checks of shapes, dtypes and devices.
Tensor like_logits(const Tensor& input, const Tensor& matrix, at::ScalarType type) {
  const Tensor one = at::empty({}, input.options().dtype(type));
  if (input.dim() != 2 || matrix.dim() != 2) return one;
  return one.expand_symint({input.sym_size(0), matrix.sym_size(0)});
}

/// The dtype of the logits for row_losses: the compute type, or that of class probabilities, which are
/// converted in pieces.
at::ScalarType row_type(const Tensor& input, const OptionalTensor& target) {
  const bool probabilities =
      target.has_value() && target->defined() && at::isFloatingType(target->scalar_type());
  return probabilities ? target->scalar_type() : compute_type(input);
}

/// Few numbers: converted at once. Others than of the two dtypes are left to the checks.
OptionalTensor converted(const OptionalTensor& x, const Tensor& input, at::ScalarType type) {
  if (!x.has_value() || !x->defined()) return x;
  const bool takes = x->scalar_type() == input.scalar_type() || x->scalar_type() == compute_type(input);
  return takes ? OptionalTensor(x->to(type)) : x;
}

LinearShape shape_of(const LinearTensors& of, const Products& products, int64_t rows, int64_t classes) {
  return {rows,
          classes,
          as_int(of.input.sym_size(1)),
          static_cast<int64_t>(at::elementSize(compute_type(of.input))),
          static_cast<int64_t>(of.input.element_size()),
          products.narrows(),
          of.input.is_cpu()};
}

bool is_capturing(const Tensor& x) {
  if (x.is_cpu()) return false;
  const c10::impl::VirtualGuardImpl device(x.device().type());
  // Older torch can't say.
  const auto ask = [&](const auto& d) {
    if constexpr (requires { d.isStreamCapturing(d.getStream(x.device())); }) {
      return d.isStreamCapturing(d.getStream(x.device()));
    } else {
      return false;
    }
  };
  return ask(device);
}

}  // namespace

LinearTensors::LinearTensors(SOFTKERN_LINEAR_TENSORS)
    : input(input),
      matrix(linear_weight),
      bias(linear_bias.value_or(Tensor())),
      rows(like_logits(input, linear_weight, row_type(input, target)), target,
           converted(weight, input, row_type(input, target)),
           converted(row_weight, input, compute_type(input)), num_items,
           converted(target_probs, input, compute_type(input))) {}

LinearTensors::LinearTensors(SOFTKERN_LINEAR_TENSORS, int64_t whole)
    : LinearTensors(input, linear_weight, linear_bias, {}, {}, row_weight, num_items, target_probs) {
  if (weight.has_value() && weight->defined()) whole = weight->size(0);
  const at::ScalarType type = row_type(input, target);
  const auto of_whole_rows = [&](at::ScalarType dtype) {
    return at::empty({}, input.options().dtype(dtype)).expand({input.size(0), whole});
  };
  OptionalTensor y = target;
  if (target.has_value() && target->defined() && at::isFloatingType(target->scalar_type())) {
    TORCH_CHECK(
        target->dim() == 2 && target->size(0) == input.size(0) && target->size(1) == linear_weight.size(0),
        "softkern::linear_row_parts: expected probabilities of the classes of the matrix, got ",
        target->sizes());
    probabilities = *target;
    y = of_whole_rows(target->scalar_type());
  }
  rows = RowTensors(of_whole_rows(type), y, converted(weight, input, type),
                    converted(row_weight, input, compute_type(input)), num_items,
                    converted(target_probs, input, compute_type(input)));
}

bool takes_linear_cross_entropy(const LinearTensors& of, const SymLinearOptions& options) {
  const auto fits = [&](const Tensor& x, int64_t dims) {
    return x.layout() == at::kStrided && !x.is_nested() && x.dim() == dims &&
           x.scalar_type() == of.input.scalar_type() && x.device() == of.input.device();
  };
  const auto equal = [](const c10::SymInt& a, const c10::SymInt& b) {
    return a.sym_eq(b).expect_true(__FILE__, __LINE__);
  };
  if (!takes_tensor(of.input) || !fits(of.input, 2) || !fits(of.matrix, 2)) return false;
  if (!equal(of.input.sym_size(1), of.matrix.sym_size(1))) return false;
  if (of.bias.defined() && (!fits(of.bias, 1) || !equal(of.bias.sym_size(0), of.matrix.sym_size(0)))) {
    return false;
  }
  const at::ScalarType type = of.rows.self.scalar_type();
  if (type != of.input.scalar_type() && type != compute_type(of.input)) return false;
  return options.plan >= kAutoPlan && options.plan < kReferencePlan && takes_row_losses(of.rows, options);
}

SymLinearOptions with_chosen_plan(const LinearTensors& of, const SymLinearOptions& options, int64_t needs) {
  const bool is_half = of.input.scalar_type() == at::kHalf;
  SymLinearOptions result = options;
  result.plan = prefers_fast(known(options), needs, is_half) ? kFastPlan : kLeanPlan;
  if (options.max_bytes < 0) return result;
  // Sizes decide: symbolic ones are specialized.
  const int64_t classes = as_int(valid_classes(of.rows.self, options));
  const LinearShape shape = shape_of(of, Products(of.input), as_int(of.input.sym_size(0)), classes);
  result.plan = chosen_plan(shape, known(options), needs, is_half);
  return result;
}

LinearCall::LinearCall(const LinearTensors& of, const SymLinearOptions& given, int64_t first)
    : kernels(cross_entropy_kernels(of.input.device())),
      options(known(given)),
      compute(compute_type(of.input)),
      products(of.input),
      input(of.input),
      of_(of),
      first_(first),
      all_(checked_rows(kernels, of.rows, given)) {
  all_.compute = compute;
  divisor = divisor_of(kernels, all_, of.rows.num_items);
  rows = all_rows();
  classes = std::clamp<int64_t>(all_.valid() - first, 0, of.matrix.size(0));
  if (of.probabilities.defined()) all_.probabilities = of.probabilities;
  if (all_.weight.defined()) all_.weight = all_.weight.to(compute);
  if (all_.kind != TargetKind::kIndex) return;
  const Tensor counts = all_.target.ne(options.ignore_index);
  if (is_capturing(input)) {
    // The number of rows must not depend on data. Zeros instead of ignored rows, because 0 * NaN would get
    // into the gradient of the weight.
    input = input.masked_fill(counts.logical_not().unsqueeze(1), 0);
    return;
  }
  const Tensor found = counts.nonzero().flatten();
  if (found.size(0) == rows) return;
  kept_ = found;
  rows = found.size(0);
  input = input.index_select(0, kept_);
  all_.target = all_.target.index_select(0, kept_);
  if (all_.row_weight.defined()) all_.row_weight = all_.row_weight.index_select(0, kept_);
  all_.layout.rows = rows;
}

LinearShape LinearCall::shape() const { return shape_of(of_, products, rows, classes); }

LinearPlan LinearCall::pieces_of(Plan plan, int64_t needs) const {
  return softkern::pieces_of(plan, shape(), options, needs);
}

bool LinearCall::prefers_fast(int64_t needs) const {
  return softkern::prefers_fast(options, needs, input.scalar_type() == at::kHalf);
}

RowCall LinearCall::part(const Tensor& logits, int64_t row, int64_t count, int64_t first) const {
  RowCall part{logits, all_.kind};
  const auto some = [&](const Tensor& x) { return x.defined() ? x.narrow(0, row, count) : x; };
  part.target = some(all_.target);
  part.per_row = all_.per_row;
  part.target_probs = some(all_.target_probs);
  part.row_weight = some(all_.row_weight);
  part.weight = all_.weight;
  part.options = all_.options;
  part.dim = 1;
  part.compute = compute;
  part.layout = {{logits.size(1), 1}, count};
  part.first = first_ + first;
  if (all_.probabilities.defined()) {
    part.probabilities = some(all_.probabilities).narrow(1, first, logits.size(1)).to(compute);
  }
  return part;
}

RowCall LinearCall::rows_of(const Tensor& logits, int64_t first, int64_t count) const {
  return part(logits, first, count, 0);
}

RowCall LinearCall::classes_of(const Tensor& logits, int64_t first, const Tensor& numbers) const {
  RowCall some = part(logits, 0, rows, first);
  some.whole = numbers;
  return some;
}

Tensor LinearCall::fresh(at::IntArrayRef sizes, at::ScalarType type) const {
  return kernels.new_output(at::empty({}, input.options().dtype(type)).expand(sizes));
}

Tensor LinearCall::spread(const Tensor& numbers, double otherwise, int64_t dim) const {
  if (!kept_.defined() || !numbers.defined()) return numbers;
  at::DimVector sizes(numbers.sizes());
  sizes[static_cast<size_t>(dim)] = all_rows();
  return at::full(sizes, otherwise, numbers.options()).index_copy_(dim, kept_, numbers);
}

Tensor LinearCall::kept(const Tensor& numbers, int64_t dim) const {
  return kept_.defined() && numbers.defined() ? numbers.index_select(dim, kept_) : numbers;
}

}  // namespace softkern
