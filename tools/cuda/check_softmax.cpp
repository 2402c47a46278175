// SPDX-License-Identifier: Apache-2.0
// Cases of softmax, log_softmax and their gradients.
#include "cases.h"

namespace softkern::tools {
namespace {

using namespace cuda;

/// y_c, or log y_c.
template <class Op>
constexpr bool kLog = std::is_same_v<Op, LogSoftmax>;
template <class Op>
double value(const Statistics& s, double x) {
  return kLog<Op> ? x - s.m - s.log_d() : s.share(x);
}

template <class Op>
Outcome forward(const Layout& at, bool in_place, Judge& judge) {
  const Tensor x = logits(at);
  Tensor separate(in_place ? Layout{0, 0} : at), over = logits(at), &y = in_place ? over : separate;
  const Outcome outcome = compute<Op, T>(
      ForwardArgs{at.shape(), at.rows, in_place ? y.rows() : x.rows(), y.rows()}, device_stream());
  if (outcome.error != nullptr) return outcome;
  y.receive();
  judge.begin("output");
  judge.add_bits(y.elements());
  judge.expect_that(y.begins_intact(), "something before the first row was written");
  for (int64_t r = 0; r < at.rows; ++r) {
    const Statistics s = statistics(at.classes, [&](int64_t c) { return x(r, c); });
    for (int64_t c = 0; c < at.classes; ++c) {
      const double want = value<Op>(s, x(r, c));
      const double terms = kLog<Op> ? fabs(x(r, c)) + fabs(s.m) + s.log_d() : want;
      judge.expect(y(r, c), want, kBounds.relative * fabs(want) + kBounds.terms * terms + kBounds.least, r,
                   c);
    }
  }
  return outcome;
}

template <class Op>
Outcome backward(const Layout& at, bool in_place, Judge& judge) {
  const Tensor x = logits(at);
  std::vector<Statistics> all;
  for (int64_t r = 0; r < at.rows; ++r) {
    all.push_back(statistics(at.classes, [&](int64_t c) { return x(r, c); }));
  }
  const Tensor y(at, [&](int64_t r, int64_t c) { return value<Op>(all[static_cast<size_t>(r)], x(r, c)); });
  const auto upstream = [&](int64_t r, int64_t c) {
    return chance(static_cast<uint64_t>(r * at.classes + c), kUpstream);
  };
  const Tensor g(at, upstream);
  Tensor separate(in_place ? Layout{0, 0} : at), over(at, upstream), &dx = in_place ? over : separate;
  const Outcome outcome =
      compute<Op, T>(BackwardArgs{at.shape(), at.rows, in_place ? dx.rows() : g.rows(), y.rows(), dx.rows()},
                     device_stream());
  if (outcome.error != nullptr) return outcome;
  dx.receive();
  judge.begin("gradient");
  judge.add_bits(dx.elements());
  judge.expect_that(dx.begins_intact(), "something before the first row was written");
  for (int64_t r = 0; r < at.rows; ++r) {
    double sum = 0, size = 0;
    for (int64_t c = 0; c < at.classes; ++c) {
      const double summand = kLog<Op> ? g(r, c) : g(r, c) * y(r, c);
      sum += summand;
      size += fabs(summand);
    }
    for (int64_t c = 0; c < at.classes; ++c) {
      const double want = kLog<Op> ? g(r, c) - exp(y(r, c)) * sum : y(r, c) * (g(r, c) - sum);
      const double terms =
          kLog<Op> ? fabs(g(r, c)) + exp(y(r, c)) * size : fabs(y(r, c)) * (fabs(g(r, c)) + size);
      judge.expect(dx(r, c), want, kBounds.relative * fabs(want) + kBounds.terms * terms + kBounds.least, r,
                   c);
    }
  }
  return outcome;
}

template <class Op>
void add(std::vector<Case>& cases, const std::string& op, const Layout& at) {
  for (const bool in_place : {false, true}) {
    const std::string where = in_place ? ", in place" : "";
    cases.push_back({op + where, at, [=](Judge& judge) { return forward<Op>(at, in_place, judge); }});
    cases.push_back(
        {op + " backward" + where, at, [=](Judge& judge) { return backward<Op>(at, in_place, judge); }});
  }
}

}  // namespace

void add_softmaxes(std::vector<Case>& cases, const Layout& at) {
  add<Softmax>(cases, "softmax", at);
  add<LogSoftmax>(cases, "log_softmax", at);
}

}  // namespace softkern::tools
