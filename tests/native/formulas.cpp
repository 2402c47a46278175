// SPDX-License-Identifier: Apache-2.0
// The formulas of csrc/common/{stats,mass,loss,tanh,row_losses,parts}.h as the CUDA kernels compute them, by
// the emulator's arithmetic: for each line of numbers on the input (in the order of read()), a line with what
// each formula makes of them, in the order of tests/kernels/test_formulas.py. `formulas float` or `formulas
// double`.
#include <cstdio>
#include <cstring>

#include "../../csrc/common/loss.h"
#include "../../csrc/common/mass.h"
#include "../../csrc/common/parts.h"
#include "../../csrc/common/row_losses.h"
#include "../../csrc/cuda/stats.cuh"

using namespace softkern;

namespace {

template <class A>
bool read(A& number) {
  double value = 0;
  const bool read = scanf("%lf", &value) == 1;
  number = static_cast<A>(value);
  return read;
}

template <class A>
void print(A number) {
  printf("%.17g ", static_cast<double>(number));
}

template <class A>
int evaluate() {
  using L = cuda::Lane<A>;
  A from, to, ties, rest, x, e, t, weight, smoothing, factor, masses, below;
  while (read(from) && read(to) && read(ties) && read(rest) && read(x) && read(e) && read(t) &&
         read(weight) && read(smoothing) && read(factor) && read(masses) && read(below)) {
    CrossEntropyOptions options;
    options.label_smoothing = static_cast<double>(smoothing);
    const MassNumbers<A> numbers = mass_numbers<A>(options, 7);
    const A top = top_term<L>(from), log = log_d<L>(ties, top, rest);
    const A divisor = L::divisor(total<L>(ties, top, rest)), mass = weighted<L>(hot_mass<L>(numbers), weight);
    print(finite<L>(from));
    print(origin_of<L>(from));
    print(power_of<L>(from));
    print(top);
    print(total<L>(ties, top, rest));
    print(d_less_one<L>(ties, top, rest));
    print(log);
    print(unit_ratio<L>(from, to));
    A moved_ties = ties, moved_rest = rest;
    move_to<L>(to, from, moved_ties, moved_rest);
    print(moved_ties);
    print(moved_rest);
    print(weighted<L>(t, weight));
    print(hot_mass<L>(numbers));
    print(uniform_mass<L>(numbers));
    print(probability_mass<L>(numbers, t));
    print(below_moved<L>(to, from, masses, below));
    print(hot_loss<L>(mass, from - x, log));
    print(spread_loss<L>(masses, below, log));
    print(gradient_scale<L>(factor, mass, masses, divisor));
    print(hot_gradient<L>(factor, mass, masses, x, e, from, ties, rest, divisor));
    print(less_mass<L>(e, mass, -factor));
    const A u = below - 4, all = L::if_finite(from, total<L>(ties, top, rest), rest);
    RowOptions row_options;
    row_options.logit_scale = static_cast<double>(weight);
    row_options.temperature = static_cast<double>(e) + 0.5;
    const LogitNumbers<A> scaled = logit_numbers<A>(row_options);
    row_options.softcap = 5 * static_cast<double>(t) + 0.5;
    const LogitNumbers<A> capped = logit_numbers<A>(row_options);
    RowOptions by_ties;
    by_ties.temperature = static_cast<double>(ties);
    RowOptions capped_by_ties;
    capped_by_ties.softcap = static_cast<double>(ties) - 1;
    print(tanh_small<L>(t - A(0.5)));
    print(tanh<L>(u));
    print(tanh<L>(from));
    print(scaled.outer);
    print(scaled.slope);
    print(capped.inner);
    print(capped.outer);
    print(capped.inverse);
    print(capped.slope);
    print(static_cast<A>(logit_numbers<A>(capped_by_ties).capped));
    print(static_cast<A>(transforms_logits(by_ties)));
    print(transformed<L>(scaled, from));
    print(transformed<L>(capped, from));
    print(transformed<L>(capped, u));
    print(logit_slope<L>(scaled, from));
    print(logit_slope<L>(capped, transformed<L>(capped, from)));
    print(logit_slope<L>(capped, transformed<L>(capped, u)));
    print(term_below<L>(smoothing, from));
    print(terms_below_moved<L>(to, from, all, unit_ratio<L>(from, to), below));
    print(lse_of<L>(from, log));
    print(log_prob_of<L>(from - x, log));
    print(entropy_of<L>(log, below));
    print(squared_lse<L>(smoothing, weight, x));
    print(common_pull<L>(factor, masses, smoothing, weight, x, t));
    print(term_pull<L>(factor, t, e, below));
    print(mass_below_moved<L>(to, from, masses, below));
    A part[kPartNumbers] = {from, ties, rest, e, masses, below, x};
    A larger[kPartNumbers] = {to, A(1), t, smoothing, weight, e, A(0)};
    merge_part<L>(part, larger);
    for (const A number : part) print(number);
    printf("\n");
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  return strcmp(argv[1], "double") == 0 ? evaluate<double>() : evaluate<float>();
}
