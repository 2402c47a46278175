// SPDX-License-Identifier: Apache-2.0
// Runs every way through the CUDA kernels once, without torch, and compares the results with float64. One
// program for each element type; tools/gpu/native.py compiles it, for a GPU or with the emulator. Prints a
// JSON object a line: the cases, then a summary.
//
//   check_cuda [--only TEXT] [--most CLASSES] [--every N] [--seconds S] [--mixed] [--spoil] [--list]
//
// --mixed goes through the cases in another order: those before any point of time are of all kinds.
// --spoil changes a number of each result before it is compared: every case has to be wrong then.
// Exit code 1: a case is wrong (with --spoil: right); 3: the seconds were not enough for all.
#include <cstring>
#include <numeric>

#include "cuda/cases.h"

namespace {

using namespace softkern::tools;
using softkern::cuda::Outcome;

struct Options {
  std::string only;
  int64_t most = INT64_MAX;
  size_t every = 1;
  double seconds = 1e9;
  bool mixed = false, spoil = false, list = false;
};

Options options_of(int count, char** values) {
  Options options;
  for (int i = 1; i < count; ++i) {
    const std::string name = values[i];
    if (name == "--spoil") {
      options.spoil = true;
    } else if (name == "--mixed") {
      options.mixed = true;
    } else if (name == "--list") {
      options.list = true;
    } else if (i + 1 < count && name == "--only") {
      options.only = values[++i];
    } else if (i + 1 < count && name == "--most") {
      options.most = atoll(values[++i]);
    } else if (i + 1 < count && name == "--every") {
      options.every = static_cast<size_t>(atoll(values[++i]));
    } else if (i + 1 < count && name == "--seconds") {
      options.seconds = atof(values[++i]);
    } else {
      give_up(("check_cuda: what is " + name + "?").c_str());
    }
  }
  if (options.every < 1) give_up("check_cuda: --every takes 1 and more");
  return options;
}

/// Row counts are small: what rows do to each other shows with three, and a checker of accesses takes long.
std::vector<Case> all_cases() {
  std::vector<Case> cases;
  const Layout one_by_one[] = {
      {300, 1},    {300, 3},    {300, 10},   {300, 31},   {300, 32},  // a thread a row
      {40, 33},    {40, 100},   {40, 128},   {40, 257},   {40, 512},  // lanes
      {3, 1000},   {3, 1001},   {3, 4096},   {3, 5003},   {3, 8192},   {3, 16384},
      {3, 16385},  {3, 32000},  {3, 32768},  {3, 50257},  {3, 51200},  {3, 65536},
      {3, 128256}, {3, 151936}, {3, 262144}, {3, 262147}, {2, 330000}, {2, 600000},
  };
  for (const Layout& at : one_by_one) {
    add_softmaxes(cases, at);
    add_losses(cases, at);
    add_scalings(cases, at);
    if (at.classes < 600000) add_row_losses(cases, at);  // the host's part of these takes seconds
  }
  // Rows that begin at odd elements, some of which end where the last warp of a cluster begins.
  for (const int64_t classes : {10, 100, 1000, 4096, 32000, 55296, 67584, 128256}) {
    const Layout at{3, classes, 1, 1};
    add_softmaxes(cases, at);
    add_losses(cases, at);
    add_scalings(cases, at);
    add_row_losses(cases, at);
  }
  // Classes apart.
  const Layout columns[] = {{120, 10, 40}, {80, 33, 40},   {68, 150, 34},  {80, 256, 40}, {66, 600, 33},
                            {72, 21, 24},  {70, 2000, 35}, {48, 2000, 24}, {8, 9000, 8}};
  for (const Layout& at : columns) {
    add_softmaxes(cases, at);
    add_losses(cases, at);
    add_scalings(cases, at);
    add_row_losses(cases, at);
  }
  add_sums(cases);
  return cases;
}

/// Each case once, with a step that has no divisor in common with their number.
std::vector<Case> mixed(std::vector<Case> cases) {
  std::vector<Case> result;
  size_t step = cases.size() * 5 / 13 + 1;
  while (std::gcd(step, cases.size()) != 1) ++step;
  for (size_t i = 0; i < cases.size(); ++i) result.push_back(cases[i * step % cases.size()]);
  return result;
}

std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') result += '\\';
    result += c;
  }
  return result + "\"";
}

}  // namespace

int main(int count, char** values) {
  seconds();
  const Options options = options_of(count, values);
  size_t number = 0, left = 0, done = 0, failed = 0;
  for (const Case& each : options.mixed ? mixed(all_cases()) : all_cases()) {
    const std::string name = each.name + " " + each.layout.name();
    if (each.layout.classes > options.most || name.find(options.only) == std::string::npos) continue;
    if (number++ % options.every != 0) continue;
    if (options.list) {
      printf("%s\n", name.c_str());
      continue;
    }
    if (seconds() > options.seconds) {
      ++left;
      continue;
    }
    Judge judge(options.spoil);
    const double begun = seconds();
    const Outcome outcome = each.run(judge);
    if (outcome.error != nullptr) judge.wrong(outcome.error);
    const bool wrong = judge.wrongs() > 0;
    ++done;
    failed += wrong;
    printf(
        "{\"case\": %s, \"dtype\": \"%s\", \"way\": %s, \"bits\": \"%016llx\", \"worst\": %.3g, \"wrong\": "
        "%lld, ",
        quoted(name).c_str(), kElementName, quoted(outcome.path != nullptr ? outcome.path : "").c_str(),
        static_cast<unsigned long long>(judge.hash()), judge.worst() < 1e9 ? judge.worst() : 1e9,
        static_cast<long long>(judge.wrongs()));
    printf("\"message\": %s, \"seconds\": %.3f}\n", quoted(judge.message()).c_str(), seconds() - begun);
    fflush(stdout);
  }
  if (options.list) return 0;
  printf(
      "{\"dtype\": \"%s\", \"device\": %s, \"cases\": %zu, \"failed\": %zu, \"left\": %zu, \"seconds\": "
      "%.1f}\n",
      kElementName, quoted(device_name()).c_str(), done, failed, left, seconds());
  if (done == 0 || failed != (options.spoil ? done : 0)) return 1;
  return left > 0 ? 3 : 0;
}
