// SPDX-License-Identifier: Apache-2.0
// A case of tools/check_cuda.cpp: a call of a kernel, and what is to be compared.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "judge.h"

namespace softkern::tools {

struct Case {
  std::string name;
  Layout layout;
  /// Runs it and compares. Returns the name of the way, after an error what went wrong.
  std::function<cuda::Outcome(Judge&)> run;
};

// Sequences of inputs.
enum : uint64_t { kLogits, kUpstream, kProbabilities, kWeights };

/// Between -6 and 6, with a larger one here and there.
inline double logit(const Layout& at, int64_t row, int64_t c) {
  const auto i = static_cast<uint64_t>(row * at.classes + c);
  return 6 * chance(i, kLogits) + (i % 1009 == 5 ? 6 : 0);
}
inline Tensor logits(const Layout& at) {
  return Tensor(at, [&](int64_t r, int64_t c) { return logit(at, r, c); });
}
/// The target of a row: the last class first, then others.
inline int64_t target(const Layout& at, int64_t row) { return (at.classes - 1 + row * 7919) % at.classes; }
/// Row 1 is ignored.
inline std::vector<int64_t> targets(const Layout& at) {
  std::vector<int64_t> result;
  for (int64_t r = 0; r < at.rows; ++r) result.push_back(r == 1 ? kIgnored : target(at, r));
  return result;
}
inline std::vector<T> class_weights(int64_t classes) {
  std::vector<T> result;
  for (int64_t c = 0; c < classes; ++c)
    result.push_back(element(1.5 + chance(static_cast<uint64_t>(c), kWeights)));
  return result;
}

void add_softmaxes(std::vector<Case>& cases, const Layout& at);
void add_losses(std::vector<Case>& cases, const Layout& at);
void add_scalings(std::vector<Case>& cases, const Layout& at);
void add_sums(std::vector<Case>& cases);
void add_row_losses(std::vector<Case>& cases, const Layout& at);

}  // namespace softkern::tools
