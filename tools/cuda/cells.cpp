// SPDX-License-Identifier: Apache-2.0
#include "cells.h"

namespace softkern::tools {
namespace {

using namespace cuda;

int64_t tensor(const Layout& at) { return at.count() * static_cast<int64_t>(sizeof(T)); }
/// The target and the loss of each row.
int64_t beside(const Layout& at) { return at.rows * (8 + static_cast<int64_t>(sizeof(A))); }

template <class Kind>
void add_softmax(std::vector<Op>& ops, const std::string& name) {
  ops.push_back({name,
                 [](const Operands& on) {
                   return compute<Kind, T>(ForwardArgs{on.at.shape(), on.at.rows, on.at.at(on.logits.at()),
                                                       on.at.at(on.out.at())},
                                           device_stream());
                 },
                 [](const Layout& at) { return 2 * tensor(at); }});
  ops.push_back({name + " backward",
                 [](const Operands& on) {
                   return compute<Kind, T>(BackwardArgs{on.at.shape(), on.at.rows, on.at.at(on.second.at()),
                                                        on.at.at(on.logits.at()), on.at.at(on.out.at())},
                                           device_stream());
                 },
                 [](const Layout& at) { return 3 * tensor(at); }});
}

struct Loss {
  const char* name;
  bool gradient = true, weights = false, half_ignored = false, probabilities = false;
  double smoothing = 0;
};

Outcome call_loss(const Operands& on, const Loss& loss) {
  CrossEntropyArgs args{};
  args.shape = on.at.shape();
  args.rows = on.at.rows;
  args.logits = on.at.at(on.logits.at());
  if (loss.probabilities) {
    args.probabilities = on.at.at(on.second.at());
  } else {
    args.target = loss.half_ignored ? on.half_ignored.at() : on.target.at();
  }
  args.target_type = kInt64;
  args.weight = loss.weights ? on.weights.at() : nullptr;
  args.options.ignore_index = kIgnored;
  args.options.label_smoothing = loss.smoothing;
  args.loss = on.loss.at();
  if (loss.gradient) args.grad = on.at.at(on.out.at());
  args.grad_factor = 1;
  args.factor = on.factor.at();
  return cross_entropy<T>(args, device_stream());
}

int64_t bytes_of_loss(const Layout& at, const Loss& loss) {
  const int64_t read = loss.half_ignored ? tensor({(at.rows + 1) / 2, at.classes}) : tensor(at);
  return read + (loss.gradient ? tensor(at) : 0) + (loss.probabilities ? tensor(at) : 0) +
         (loss.weights ? at.classes * static_cast<int64_t>(sizeof(T)) : 0) + beside(at);
}

Outcome call_row_losses(const Operands& on, double softcap) {
  RowLossArgs args{};
  args.shape = on.at.shape();
  args.classes = on.at.classes;
  args.rows = on.at.rows;
  args.logits = on.at.at(on.logits.at());
  args.target = on.target.at();
  args.target_type = kInt64;
  args.options.ignore_index = kIgnored;
  args.options.valid_classes = on.at.classes;
  args.options.softcap = softcap;
  args.options.z_loss = 1e-4;
  args.options.outputs = kLoss;
  args.results.loss = on.loss.at();
  args.grad = on.at.at(on.out.at());
  args.grad_factor = 1;
  args.factor = on.factor.at();
  return row_losses<T>(args, device_stream());
}

/// In place, as the backward of cross_entropy does it, by a factor other than 1.
Outcome call_scale(const Operands& on, bool by_row) {
  ScaleArgs args{};
  args.shape = on.at.shape();
  args.rows = on.at.rows;
  args.input = args.output = on.at.at(on.out.at());
  args.upstream = on.of_rows.at();
  args.upstream_type = kElement;
  args.by_row = by_row;
  args.scale = on.factor.at();
  args.target = on.target.at();
  args.target_type = kInt64;
  args.ignore_index = kIgnored;
  return scale<T>(args, device_stream());
}

Outcome call_mass(const Operands& on) {
  MassArgs args{};
  args.weights = {on.target.at(), kInt64, on.at.classes, kIgnored, nullptr, kElement};
  args.rows = on.at.rows;
  args.mass = on.mass.at();
  args.factor = on.number.at();
  args.factor_in_double = kElement == kDouble;
  args.scratch = on.scratch.at();
  return {find_mass(args, device_stream()), "mass"};
}

Outcome call_reduce(const Operands& on) {
  ReduceArgs args{};
  args.losses = on.loss.at();
  args.in_double = kElement == kDouble;
  args.rows = on.at.rows;
  args.divisor = static_cast<double>(on.at.rows);
  args.loss = on.number.at();
  args.loss_type = kElement == kDouble ? kDouble : kFloat;
  args.scratch = on.scratch.at();
  return {reduce_losses(args, device_stream()), "reduce"};
}

}  // namespace

std::vector<Op> all_ops() {
  std::vector<Op> ops;
  const Loss losses[] = {{"cross_entropy", false},
                         {"cross_entropy with gradient"},
                         {"cross_entropy with gradient, label smoothing", true, false, false, false, 0.1},
                         {"cross_entropy with gradient, class weights", true, true},
                         {"cross_entropy with gradient, half of the rows ignored", true, false, true},
                         {"cross_entropy with gradient, probabilities", true, false, false, true}};
  for (const Loss& loss : losses) {
    ops.push_back({loss.name, [=](const Operands& on) { return call_loss(on, loss); },
                   [=](const Layout& at) { return bytes_of_loss(at, loss); }});
  }
  add_softmax<Softmax>(ops, "softmax");
  add_softmax<LogSoftmax>(ops, "log_softmax");
  const auto twice = [](const Layout& at) { return 2 * tensor(at); };
  ops.push_back({"scale", [](const Operands& on) { return call_scale(on, false); }, twice});
  ops.push_back({"scale by row", [](const Operands& on) { return call_scale(on, true); }, twice});
  const auto with_loss = [](const Layout& at) { return 2 * tensor(at) + beside(at); };
  ops.push_back(
      {"row_losses with gradient", [](const Operands& on) { return call_row_losses(on, 0); }, with_loss});
  ops.push_back({"row_losses with gradient, softcap",
                 [](const Operands& on) { return call_row_losses(on, 30); }, with_loss});
  ops.push_back({"mass", call_mass, [](const Layout& at) { return at.rows * 8; }});
  ops.push_back(
      {"reduce", call_reduce, [](const Layout& at) { return at.rows * static_cast<int64_t>(sizeof(A)); }});
  return ops;
}

std::vector<Group> all_groups() {
  const std::vector<std::string> usual = {"softmax", "log_softmax", "softmax backward", "cross_entropy",
                                          "cross_entropy with gradient"};
  const std::vector<std::string> columns = {"softmax",
                                            "log_softmax",
                                            "softmax backward",
                                            "log_softmax backward",
                                            "cross_entropy",
                                            "cross_entropy with gradient",
                                            "scale"};
  std::vector<Group> groups = {{{}, {}}, {{{1000000, 10}}, {}}, {{}, columns}, {{}, usual}};
  for (const int64_t classes : {128256, 32000, 50257, 4096, 151936, 262144}) {
    groups[0].layouts.push_back({2048, classes});
  }
  groups[2].layouts = {{64 * 196, 1000, 196}, {4 * 512 * 512, 21, 512 * 512}};
  // Those of the first figures (docs/cuda.json).
  groups[3].layouts = {{32768, 256},  {32768, 1024}, {32768, 4096}, {16384, 8192}, {8192, 16384},
                       {4096, 32000}, {4096, 50257}, {4096, 65536}, {4096, 128256}};
  return groups;
}

}  // namespace softkern::tools
