// SPDX-License-Identifier: Apache-2.0
// The sweep's cases of row_losses.
#pragma once

#include "sweep_memory.h"

namespace {

/// What row_losses reads and writes besides the logits and their gradient, and its cases: kinds of targets,
/// each with another transformation, padding, upstream gradients and results.
class RowLossCases {
 public:
  static constexpr int kCases = 16, kIndices = 3;
  explicit RowLossCases(const Case& c, const std::vector<int64_t>& targets)
      : case_(c),
        computed_(c.type == kDouble ? kDouble : kFloat),
        size_(kSize[computed_]),
        several_(c.rows * kIndices * sizeof(int64_t), c.at_end),
        by_index_(c.rows * kIndices * size_, c.at_end),
        by_row_(c.rows * size_, c.at_end),
        argmax_(c.rows * sizeof(int64_t), c.at_end),
        correct_(c.rows, c.at_end),
        numbers_(kPartNumbers * c.rows * size_, c.at_end),
        halves_(2 * kPartNumbers * c.rows * size_, c.at_end),
        hot_z_(c.rows * kIndices * size_, c.at_end) {
    for (int64_t i = 0; i < c.rows * kIndices; ++i) {
      const int64_t target = (targets[i % c.rows] + i) % valid();
      const int64_t y = target < 0 ? 0 : target;
      memcpy(several_.data + i * sizeof(int64_t), &y, sizeof(y));
      put(by_index_.data + i * size_, computed_, 0.25 * (i % 4));
    }
    for (int64_t r = 0; r < c.rows; ++r) put(by_row_.data + r * size_, computed_, 0.5 * (r % 3));
  }

  RowLossArgs args(int number, const Shape& shape, const Rows& logits, const Rows& grad,
                   const Rows& probabilities, const char* target, const char* weight) const {
    RowLossArgs a{};
    const int kind = number % 4, variant = number / 4;
    a.shape = shape;
    a.valid = a.row_valid = kind == 0 ? case_.classes : valid();
    a.logits = logits;
    if (kind == 0) a.target = reinterpret_cast<const int64_t*>(target), a.per_row = 1;
    if (kind == 1) a.target = reinterpret_cast<const int64_t*>(several_.data), a.per_row = kIndices;
    if (kind == 1 && variant != 3) a.target_probs = by_index_.data;
    if (kind == 2) a.probabilities = probabilities;
    a.weight = variant % 2 == 1 ? weight : nullptr;
    a.row_weight = variant == 2 ? by_row_.data : nullptr;
    a.options.label_smoothing = variant == 1 ? 0.1 : 0;
    a.options.softcap = variant == 2 ? 5 : 0;
    a.options.logit_scale = variant == 3 ? 0.5 : 1;
    a.options.z_loss = variant == 1 ? 0.01 : 0;
    a.loss = kind == 3 ? nullptr : by_result_[0].data;
    a.log_prob = kind < 2 ? by_result_[1].data : nullptr;
    a.lse = by_result_[2].data;
    a.entropy = variant > 0 ? by_result_[3].data : nullptr;
    a.argmax = variant > 1 ? reinterpret_cast<int64_t*>(argmax_.data) : nullptr;
    a.correct = kind == 0 && variant != 2 ? reinterpret_cast<bool*>(correct_.data) : nullptr;
    a.grad = grad;
    a.grad_factor = kind == 3 || (kind == 1 && variant == 3) ? 0 : 0.37;
    a.of_loss = variant == 3 ? by_row_.data : nullptr;
    a.of_log_prob = kind < 2 && variant > 1 ? by_index_.data : nullptr;
    a.of_lse = variant == 3 || kind == 3 ? by_row_.data : nullptr;
    a.of_entropy = variant > 1 ? by_row_.data : nullptr;
    return a;
  }
  /// The arguments for the numbers of the rows, and for the gradient of some classes from these numbers.
  RowLossArgs numbers(const RowLossArgs& of) const {
    RowLossArgs a = of;
    a.grad = {};
    a.parts = numbers_.data;
    a.parts_step = case_.rows;
    a.hot_z = a.per_row > 1 ? hot_z_.data : nullptr;
    a.options.outputs = kEntropy;
    return a;
  }
  RowLossArgs some_classes(const RowLossArgs& of, int64_t begin, int64_t end, size_t size) const {
    RowLossArgs a = of;
    a.shape.classes = end - begin;
    a.valid = std::clamp<int64_t>(of.valid - begin, 0, end - begin);
    a.first = begin;
    a.whole = numbers_.data;
    a.whole_step = case_.rows;
    for (Rows* rows : {&a.logits, &a.probabilities, &a.grad}) {
      if (rows->data != nullptr) {
        rows->data = static_cast<char*>(rows->data) + static_cast<size_t>(begin * rows->class_stride) * size;
      }
    }
    a.loss = a.log_prob = a.lse = a.entropy = nullptr;
    a.argmax = nullptr;
    a.correct = nullptr;
    return a;
  }
  /// Of the numbers of some classes: the first or the second of two parts of the rows.
  RowLossArgs half(const RowLossArgs& of, int64_t begin, int64_t end, size_t size, int part) const {
    RowLossArgs a = some_classes(of, begin, end, size);
    a.grad = {};
    a.whole = nullptr;
    a.parts = halves_.data + part * case_.rows * size_;
    a.parts_step = 2 * case_.rows;
    a.options.outputs = kEntropy;
    return a;
  }
  /// Of the rows' numbers and results from those two parts. Several indices have the z that `numbers` wrote.
  RowMergeArgs merge(const RowLossArgs& of) const {
    RowMergeArgs a{};
    a.parts = halves_.data;
    a.number_step = 2 * case_.rows;
    a.node_step = case_.rows;
    a.nodes = 2;
    a.rows = numbers(of);
    a.hot_z = a.rows.hot_z;
    return a;
  }
  std::string numbers_bytes() const { return numbers_.bytes(); }
  /// The bytes of the results.
  std::string bytes() const {
    std::string all;
    for (const Guarded& result : by_result_) all += result.bytes();
    // Numbers of classes, as numbers that are no NaNs.
    for (int64_t r = 0; r < case_.rows; ++r) {
      int64_t found;
      memcpy(&found, argmax_.data + r * sizeof(found), sizeof(found));
      char number[8];
      put(number, computed_, static_cast<double>(found) + 0.5 * correct_.data[r]);
      all.append(number, size_);
    }
    return all;
  }
  int computed() const { return computed_; }

 private:
  /// The last classes are padding.
  int64_t valid() const { return case_.classes > 3 ? case_.classes - 3 : 1; }
  Case case_;
  int computed_;
  size_t size_;
  Guarded several_, by_index_, by_row_, argmax_, correct_, numbers_, halves_, hot_z_;
  const Guarded by_result_[4] = {{case_.rows * size_, case_.at_end},
                                 {case_.rows * kIndices * size_, case_.at_end},
                                 {case_.rows * size_, case_.at_end},
                                 {case_.rows * size_, case_.at_end}};
};

}  // namespace
