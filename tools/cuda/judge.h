// SPDX-License-Identifier: Apache-2.0
// Compares results with numbers of float64, and makes one number of their bits.
#pragma once

#include <cmath>
#include <cstdio>
#include <string>

#include "tensor.h"

namespace softkern::tools {

/// The error of a result: `relative`, of one rounding to the element type and a few of the compute type;
/// `terms`, relative to what is added up. 16-bit rows have terms exp(x) within 2^-16 and 2^-18
/// (docs/cuda.md), and a row of N terms in a tree a few roundings more. Below `least`, numbers have fewer
/// digits, or are 0.
struct Bounds {
  double relative, terms, least;
};
constexpr Bounds kBounds = kElement == kFloat      ? Bounds{0x1p-19, 0x1p-19, 0x1p-120}
                           : kElement == kDouble   ? Bounds{0x1p-46, 0x1p-46, 0x1p-1000}
                           : kElement == kBFloat16 ? Bounds{0x1.1p-8, 0x1p-14, 0x1p-120}
                                                   : Bounds{0x1.1p-11, 0x1p-15, 0x1p-24};
/// Numbers of the compute type: losses and statistics.
constexpr double kOfCompute = kBounds.terms;

class Judge {
 public:
  /// `spoil`: changes the first number of each result, which has to be noticed.
  explicit Judge(bool spoil) : spoil_(spoil) {}

  /// A result follows.
  void begin(const char* name) {
    name_ = name;
    first_ = true;
  }
  void expect(double got, double want, double bound, int64_t row, int64_t c) {
    if (spoil_ && first_) got += 2 * bound + fabs(want) / 2 + 1e-3;
    first_ = false;
    if (got == want) return;
    const double error = fabs(got - want) / bound;
    if (error > worst_) worst_ = error;
    if (!(error <= 1)) wrong(got, want, row, c);
  }
  void expect_that(bool holds, const char* what) {
    if (!holds) wrong(what);
  }
  void wrong(const std::string& what) {
    if (wrong_++ == 0) message_ = std::string(name_) + ": " + what;
  }

  template <class N>
  void add_bits(const std::vector<N>& numbers) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(numbers.data());
    for (size_t i = 0; i < numbers.size() * sizeof(N); ++i) hash_ = (hash_ ^ bytes[i]) * 0x100000001b3u;
  }

  int64_t wrongs() const { return wrong_; }
  double worst() const { return worst_; }
  uint64_t hash() const { return hash_; }
  const std::string& message() const { return message_; }

 private:
  void wrong(double got, double want, int64_t row, int64_t c) {
    char text[160];
    snprintf(text, sizeof text, "row %lld, class %lld: %.9g instead of %.9g", static_cast<long long>(row),
             static_cast<long long>(c), got, want);
    wrong(text);
  }

  bool spoil_, first_ = true;
  const char* name_ = "";
  int64_t wrong_ = 0;
  double worst_ = 0;
  uint64_t hash_ = 0xcbf29ce484222325u;
  std::string message_;
};

/// The statistics of a row in float64.
struct Statistics {
  double m = -INFINITY, d = 0;
  double log_d() const { return log(d); }
  double share(double x) const { return exp(x - m) / d; }
};
template <class F>
Statistics statistics(int64_t classes, F x) {
  Statistics s;
  for (int64_t c = 0; c < classes; ++c) s.m = fmax(s.m, x(c));
  for (int64_t c = 0; c < classes; ++c) s.d += exp(x(c) - s.m);
  return s;
}

}  // namespace softkern::tools
