// SPDX-License-Identifier: Apache-2.0
// Cases of cross_entropy, of the scaling of its gradient, and of the sums over rows.
#include "cases.h"

namespace softkern::tools {
namespace {

using namespace cuda;

struct Way {
  const char* name;
  bool gradient = true, in_place = false, weights = false, probabilities = false;
  double smoothing = 0;
};

/// A row's a_c (common/mass.h).
double mass(const Way& way, const Layout& at, const std::vector<T>& weights, const Tensor* probabilities,
            int64_t row, int64_t c) {
  const double w = way.weights ? number(weights[static_cast<size_t>(c)]) : 1;
  const double share = way.smoothing / static_cast<double>(at.classes);
  if (probabilities != nullptr) return w * ((1 - way.smoothing) * (*probabilities)(row, c) + share);
  return w * ((target(at, row) == c ? 1 - way.smoothing : 0) + share);
}

Outcome cross_entropy_case(const Layout& at, const Way& way, Judge& judge) {
  const Tensor x = logits(at);
  Tensor separate(way.gradient && !way.in_place ? at : Layout{0, 0});
  Tensor over = way.in_place ? logits(at) : Tensor(Layout{0, 0});
  Tensor& dx = way.in_place ? over : separate;
  const Numbers<int64_t> target(targets(at));
  const Numbers<T> weights(class_weights(at.classes));
  const Tensor probabilities(way.probabilities ? at : Layout{0, 0}, [&](int64_t r, int64_t c) {
    const auto i = static_cast<uint64_t>(r * at.classes + c);
    return (1 + chance(i, kProbabilities)) / static_cast<double>(at.classes);
  });
  Numbers<A> loss(at.rows);
  const double kFactor = 0.5, kOnDevice = 3;
  const Numbers<A> factor(std::vector<A>{static_cast<A>(kOnDevice)});
  CrossEntropyArgs args{};
  args.shape = at.shape();
  args.rows = at.rows;
  args.logits = way.in_place ? dx.rows() : x.rows();
  if (way.probabilities) {
    args.probabilities = probabilities.rows();
  } else {
    args.target = target.at();
  }
  args.target_type = kInt64;
  args.weight = way.weights ? weights.at() : nullptr;
  args.options.ignore_index = kIgnored;
  args.options.label_smoothing = way.smoothing;
  args.loss = loss.at();
  if (way.gradient) args.grad = dx.rows();
  args.grad_factor = kFactor;
  args.factor = factor.at();
  const Outcome outcome = cross_entropy<T>(args, device_stream());
  if (outcome.error != nullptr) return outcome;
  loss.receive();
  dx.receive();
  judge.add_bits(loss.host);
  judge.add_bits(dx.elements());
  judge.begin("gradient");
  if (way.gradient) judge.expect_that(dx.begins_intact(), "something before the first row was written");
  for (int64_t r = 0; r < at.rows; ++r) {
    const bool ignored = !way.probabilities && target.host[static_cast<size_t>(r)] == kIgnored;
    const Statistics s = statistics(at.classes, [&](int64_t c) { return x(r, c); });
    const auto a = [&](int64_t c) {
      return mass(way, at, weights.host, way.probabilities ? &probabilities : nullptr, r, c);
    };
    double total = 0, masses = 0, terms = 0;
    for (int64_t c = 0; c < at.classes; ++c) {
      total += a(c) * (s.m - x(r, c) + s.log_d());
      terms += a(c) * (fabs(s.m) + fabs(x(r, c)) + s.log_d() + 1);
      masses += a(c);
    }
    judge.begin("loss");
    judge.expect(static_cast<double>(loss.host[static_cast<size_t>(r)]), ignored ? 0 : total,
                 kOfCompute * terms, r, -1);
    judge.begin("gradient");
    for (int64_t c = 0; way.gradient && c < at.classes; ++c) {
      const double p = s.share(x(r, c)), by = ignored ? 0 : kFactor * kOnDevice;
      const double want = by * (p * masses - a(c));
      const double size = by * (p * masses + a(c));
      judge.expect(dx(r, c), want, kBounds.relative * fabs(want) + kBounds.terms * size + kBounds.least, r,
                   c);
    }
  }
  return outcome;
}

Outcome scale_case(const Layout& at, bool in_place, bool by_row, Judge& judge) {
  const std::vector<int64_t> indices = targets(at);
  // Ignored rows are zeros, and stay so.
  const auto gradient = [&](int64_t r, int64_t c) {
    return indices[static_cast<size_t>(r)] == kIgnored ? 0 : logit(at, r, c) / 16;
  };
  const Tensor in(at, gradient);
  Tensor separate(in_place ? Layout{0, 0} : at), over(at, gradient), &out = in_place ? over : separate;
  const Numbers<int64_t> target(indices);
  const int64_t count = by_row ? at.rows : 1;
  std::vector<T> factors;
  for (int64_t r = 0; r < count; ++r)
    factors.push_back(element(r == 1 ? INFINITY : 0.75 + static_cast<double>(r % 4)));
  const Numbers<T> upstream(factors);
  const Numbers<A> scaled(std::vector<A>{A(2)});
  ScaleArgs args{};
  args.shape = at.shape();
  args.rows = at.rows;
  args.input = in_place ? out.rows() : in.rows();
  args.output = out.rows();
  args.upstream = upstream.at();
  args.upstream_type = kElement;
  args.by_row = by_row;
  args.scale = scaled.at();
  args.target = target.at();
  args.target_type = kInt64;
  args.ignore_index = kIgnored;
  const Outcome outcome = scale<T>(args, device_stream());
  if (outcome.error != nullptr) return outcome;
  out.receive();
  judge.begin("scaled");
  judge.add_bits(out.elements());
  judge.expect_that(out.begins_intact(), "something before the first row was written");
  for (int64_t r = 0; r < at.rows; ++r) {
    const double by = 2 * number(factors[static_cast<size_t>(by_row ? r : 0)]);
    for (int64_t c = 0; c < at.classes; ++c) {
      const double want = indices[static_cast<size_t>(r)] == kIgnored ? 0 : by * in(r, c);
      judge.expect(out(r, c), want, kBounds.relative * fabs(want) + kBounds.least, r, c);
    }
  }
  return outcome;
}

Outcome mass_case(int64_t rows, Judge& judge) {
  const Layout at{rows, 1000};
  const Numbers<int64_t> target(targets(at));
  const Numbers<T> weights(class_weights(at.classes));
  Numbers<double> mass(1);
  Numbers<A> factor(1);
  const Numbers<double> scratch(sum_scratch(rows));
  MassArgs args{};
  args.weights = {target.at(), kInt64, at.classes, kIgnored, weights.at(), kElement};
  args.rows = rows;
  args.mass = mass.at();
  args.factor = factor.at();
  args.factor_in_double = kElement == kDouble;
  args.scratch = scratch.at();
  if (const char* error = find_mass(args, device_stream())) return {error, ""};
  mass.receive();
  factor.receive();
  double sum = 0;
  for (const int64_t y : target.host) sum += y == kIgnored ? 0 : number(weights.host[static_cast<size_t>(y)]);
  judge.begin("mass");
  judge.add_bits(mass.host);
  judge.expect(mass.host[0], sum, 1e-12 * sum, 0, 0);
  judge.begin("factor");
  judge.expect(static_cast<double>(factor.host[0]), 1 / sum, kOfCompute / sum, 0, 0);
  return {nullptr, "mass"};
}

Outcome reduce_case(int64_t rows, Judge& judge) {
  std::vector<A> each;
  for (int64_t r = 0; r < rows; ++r)
    each.push_back(static_cast<A>(3 + chance(static_cast<uint64_t>(r), kLogits)));
  const Numbers<A> losses(each), stored_scale(1);
  Numbers<A> loss(1), grad_scale(1);
  const Numbers<double> scratch(sum_scratch(rows));
  ReduceArgs args{};
  args.losses = losses.at();
  args.in_double = kElement == kDouble;
  args.rows = rows;
  args.divisor = static_cast<double>(rows);
  args.storage = 4;
  args.loss = loss.at();
  args.loss_type = kElement == kDouble ? kDouble : kFloat;
  args.grad_scale = grad_scale.at();
  args.scratch = scratch.at();
  if (const char* error = reduce_losses(args, device_stream())) return {error, ""};
  loss.receive();
  grad_scale.receive();
  double sum = 0;
  for (const A x : each) sum += static_cast<double>(x);
  const auto by = static_cast<double>(rows);
  judge.begin("loss");
  judge.add_bits(loss.host);
  judge.expect(static_cast<double>(loss.host[0]), sum / by, 1e-7 * sum / by, 0, 0);
  judge.begin("factor");
  judge.expect(static_cast<double>(grad_scale.host[0]), 1 / (4 * by), 1e-7 / by, 0, 0);
  return {nullptr, "reduce"};
}

}  // namespace

void add_losses(std::vector<Case>& cases, const Layout& at) {
  const Way ways[] = {
      {"without gradient", false},
      {"with gradient"},
      {"in place", true, true},
      {"class weights, in place", true, true, true},
      {"label smoothing", true, false, false, false, 0.1},
      {"label smoothing, class weights, in place", true, true, true, false, 0.1},
      {"label smoothing, without gradient", false, false, false, false, 0.1},
      {"probabilities", true, false, false, true},
      {"probabilities, label smoothing, class weights, in place", true, true, true, true, 0.2},
  };
  for (const Way& way : ways) {
    cases.push_back({std::string("cross_entropy, ") + way.name, at,
                     [=](Judge& judge) { return cross_entropy_case(at, way, judge); }});
  }
}

void add_scalings(std::vector<Case>& cases, const Layout& at) {
  for (const bool by_row : {false, true}) {
    for (const bool in_place : {false, true}) {
      cases.push_back({std::string("scale") + (by_row ? ", by row" : "") + (in_place ? ", in place" : ""), at,
                       [=](Judge& judge) { return scale_case(at, in_place, by_row, judge); }});
    }
  }
}

void add_sums(std::vector<Case>& cases) {
  for (const int64_t rows : {int64_t{1}, int64_t{5}, int64_t{5000}, int64_t{200000}}) {
    cases.push_back({"mass", {rows, 1}, [=](Judge& judge) { return mass_case(rows, judge); }});
    cases.push_back({"reduce", {rows, 1}, [=](Judge& judge) { return reduce_case(rows, judge); }});
  }
}

}  // namespace softkern::tools
