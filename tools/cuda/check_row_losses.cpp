// SPDX-License-Identifier: Apache-2.0
// Cases of row_losses, and of its gradient and results from parts of the rows (common/row_losses.h).
#include "cases.h"

namespace softkern::tools {
namespace {

using namespace cuda;

struct Way {
  const char* name;
  bool in_place = false, weights = false, entropy = false, parts = false;
  double smoothing = 0, softcap = 0, scale = 1, temperature = 1;
};
constexpr double kZLoss = 0.01, kFactor = 0.5, kPullOfLse = 0.25, kPullOfEntropy = 0.125;

double row_weight(int64_t row) { return 1 + 0.5 * static_cast<double>(row % 3); }

/// z, and dz/dx.
struct Transformed {
  double z, slope;
};
Transformed transformed(const Way& way, double x) {
  const double slope = way.scale / way.temperature;
  if (way.softcap == 0) return {slope * x, slope};
  const double t = tanh(way.scale / way.softcap * x);
  return {way.softcap / way.temperature * t, slope * (1 - t * t)};
}

/// What the kernels write for rows.
struct Results {
  explicit Results(int64_t rows)
      : loss(rows), log_prob(rows), lse(rows), entropy(rows), argmax(rows), correct(rows) {}
  void receive() {
    for (Numbers<A>* numbers : {&loss, &log_prob, &lse, &entropy}) numbers->receive();
    argmax.receive();
    correct.receive();
  }
  Numbers<A> loss, log_prob, lse, entropy;
  Numbers<int64_t> argmax;
  Numbers<char> correct;
};

/// The classes of a row are read at once, or in two parts, whose numbers are merged.
Outcome computed(const Layout& at, bool parts, const RowLossArgs& whole, const DeviceStream& stream) {
  if (!parts) return row_losses<T>(whole, stream);
  const int64_t rows = at.rows, middle = (at.classes + 1) / 2;
  const Numbers<A> numbers(2 * kPartNumbers * rows), merged(kPartNumbers * rows);
  RowLossArgs halves[2] = {whole, whole};
  Outcome outcome{};
  for (const int64_t half : {0, 1}) {
    RowLossArgs& args = halves[half];
    args.first = half == 0 ? 0 : middle;
    args.shape.classes = args.classes = half == 0 ? middle : at.classes - middle;
    for (Rows* each : {&args.logits, &args.grad})
      each->data = static_cast<T*>(each->data) + args.first * at.inner;
    RowLossArgs first = args;
    first.results = {};
    first.upstream = {};
    first.argmax = nullptr;
    first.correct = nullptr;
    first.grad = {};
    first.parts = {numbers.at() + half * rows, 2 * rows};
    outcome = row_losses<T>(first, stream);
    if (outcome.error != nullptr) return outcome;
  }
  RowMergeArgs merge{};
  merge.parts = numbers.at();
  merge.number_step = 2 * rows;
  merge.node_step = rows;
  merge.nodes = 2;
  merge.merged = {merged.at(), rows};
  merge.rows = whole;
  merge.rows.shape = {at.classes, 1};
  merge.rows.logits = merge.rows.grad = {};
  merge.rows.upstream = {};
  merge.rows.argmax = nullptr;
  merge.rows.correct = nullptr;
  outcome = row_merge<T>(merge, stream);
  for (RowLossArgs& args : halves) {
    if (outcome.error != nullptr) return outcome;
    args.results = {};
    args.argmax = nullptr;
    args.correct = nullptr;
    args.whole = {merged.at(), rows};
    outcome = row_parts<T>(args, stream);
  }
  synchronize();  // the numbers are in use until then
  return outcome;
}

void compare(const Layout& at, const Way& way, const Tensor& x, const Tensor& dx, const Results& found,
             const std::vector<int64_t>& targets, const std::vector<T>& weights, Judge& judge) {
  for (int64_t r = 0; r < at.rows; ++r) {
    const auto row = static_cast<size_t>(r);
    const bool ignored = targets[row] == kIgnored;
    const int64_t y = target(at, r);
    const auto weight = [&](int64_t c) { return way.weights ? number(weights[static_cast<size_t>(c)]) : 1; };
    std::vector<Transformed> of_row;
    for (int64_t c = 0; c < at.classes; ++c) of_row.push_back(transformed(way, x(r, c)));
    const auto z = [&](int64_t c) { return of_row[static_cast<size_t>(c)].z; };
    const auto a = [&](int64_t c) {
      return weight(c) * ((c == y ? 1 - way.smoothing : 0) + way.smoothing / static_cast<double>(at.classes));
    };
    const Statistics s = statistics(at.classes, z);
    const double lse = s.m + s.log_d();
    double loss = kZLoss * weight(y) * lse * lse, masses = 0, below = 0, terms = loss;
    for (int64_t c = 0; c < at.classes; ++c) {
      loss += a(c) * (lse - z(c));
      terms += a(c) * (fabs(s.m) + fabs(z(c)) + s.log_d() + 1);
      masses += a(c);
      below += s.share(z(c)) * (s.m - z(c));
    }
    const double size = fabs(s.m) + fabs(z(y)) + s.log_d() + 1;
    const auto number_of = [&](const char* name, const Numbers<A>& numbers, double want, double bound) {
      judge.begin(name);
      judge.expect(static_cast<double>(numbers.host[row]), ignored ? 0 : want, bound, r, -1);
    };
    number_of("loss", found.loss, row_weight(r) * loss, kOfCompute * row_weight(r) * terms);
    number_of("log_prob", found.log_prob, z(y) - lse, kOfCompute * size);
    number_of("lse", found.lse, lse, kOfCompute * size);
    if (way.entropy) number_of("entropy", found.entropy, s.log_d() + below, kOfCompute * (size + below));
    if (!way.parts) {
      const int64_t first = found.argmax.host[row];
      judge.begin("argmax");
      if (ignored) {
        judge.expect_that(first == -1, "not -1 for an ignored row");
      } else if (first < 0 || first >= at.classes || !(z(first) >= s.m - kOfCompute * size)) {
        judge.wrong("class " + std::to_string(first) + " of row " + std::to_string(r));
      }
      judge.expect_that(found.correct.host[row] == (!ignored && first == y), "correct is not");
    }
    const double g = kFactor * row_weight(r), pull_of_entropy = way.entropy ? kPullOfEntropy : 0;
    const double alpha = g * (masses + 2 * kZLoss * weight(y) * lse) + kPullOfLse;
    judge.begin("gradient");
    for (int64_t c = 0; c < at.classes; ++c) {
      const Transformed& each = of_row[static_cast<size_t>(c)];
      const double p = s.share(each.z), beside = s.m - each.z - below;
      const double want = each.slope * (p * (alpha + pull_of_entropy * beside) - g * a(c));
      const double pulls = fabs(alpha) + pull_of_entropy * (s.m - each.z + fabs(below));
      const double bound = kBounds.relative * fabs(want) + 4 * kBounds.terms * (p * pulls + g * a(c));
      judge.expect(dx(r, c), ignored ? 0 : want, bound + kBounds.least, r, c);
    }
  }
}

Outcome row_losses_case(const Layout& at, const Way& way, Judge& judge) {
  const Tensor x = logits(at);
  Tensor separate(way.in_place ? Layout{0, 0} : at), over = logits(at), &dx = way.in_place ? over : separate;
  const Numbers<int64_t> target(targets(at));
  const Numbers<T> weights(class_weights(at.classes));
  std::vector<A> of_rows;
  for (int64_t r = 0; r < at.rows; ++r) of_rows.push_back(static_cast<A>(row_weight(r)));
  const Numbers<A> row_weights(of_rows), pull_of_lse(std::vector<A>(of_rows.size(), A(kPullOfLse))),
      pull_of_entropy(std::vector<A>(of_rows.size(), A(kPullOfEntropy)));
  Results found(at.rows);
  RowLossArgs args{};
  args.shape = at.shape();
  args.classes = at.classes;
  args.rows = at.rows;
  args.logits = way.in_place ? dx.rows() : x.rows();
  args.target = target.at();
  args.target_type = kInt64;
  args.weight = way.weights ? weights.at() : nullptr;
  args.row_weight = row_weights.at();
  args.options.ignore_index = kIgnored;
  args.options.label_smoothing = way.smoothing;
  args.options.valid_classes = at.classes;
  args.options.logit_scale = way.scale;
  args.options.softcap = way.softcap;
  args.options.temperature = way.temperature;
  args.options.z_loss = kZLoss;
  args.options.outputs = kLoss | kLogProb | kLse | (way.entropy ? kEntropy : Output{});
  args.results = {found.loss.at(), found.log_prob.at(), found.lse.at(),
                  way.entropy ? found.entropy.at() : nullptr};
  args.argmax = found.argmax.at();
  args.correct = reinterpret_cast<bool*>(found.correct.at());
  args.grad = dx.rows();
  args.grad_factor = kFactor;
  args.upstream.lse = pull_of_lse.at();
  args.upstream.entropy = way.entropy ? pull_of_entropy.at() : nullptr;
  const Outcome outcome = computed(at, way.parts, args, device_stream());
  if (outcome.error != nullptr) return outcome;
  found.receive();
  dx.receive();
  for (const Numbers<A>* numbers : {&found.loss, &found.log_prob, &found.lse}) judge.add_bits(numbers->host);
  judge.add_bits(dx.elements());
  judge.begin("gradient");
  judge.expect_that(dx.begins_intact(), "something before the first row was written");
  compare(at, way, x, dx, found, target.host, weights.host, judge);
  return outcome;
}

}  // namespace

void add_row_losses(std::vector<Case>& cases, const Layout& at) {
  const Way ways[] = {
      {"plain"},
      {"class weights, in place", true, true},
      {"softcap, entropy, in place", true, false, true, false, 0, 5, 0.5, 0.7},
      {"label smoothing, class weights, in place", true, true, false, false, 0.1},
      {"softcap, label smoothing, entropy", false, false, true, false, 0.1, 5, 0.5, 0.7},
      {"in parts, in place", true, false, false, true},
      {"in parts, softcap, entropy, in place", true, false, true, true, 0, 5, 0.5, 0.7},
      {"in parts, label smoothing, class weights, in place", true, true, false, true, 0.1},
  };
  for (const Way& way : ways) {
    if (way.parts && at.classes < 2) continue;
    cases.push_back({std::string("row_losses, ") + way.name, at,
                     [=](Judge& judge) { return row_losses_case(at, way, judge); }});
  }
}

}  // namespace softkern::tools
