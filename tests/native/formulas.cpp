// SPDX-License-Identifier: Apache-2.0
// The formulas of csrc/common/{stats,mass,loss}.h as the CUDA kernels compute them, by the emulator's
// arithmetic: for each line of numbers on the input (in the order of read()), a line with what each formula
// makes of them, in the order of tests/kernels/test_formulas.py. `formulas float` or `formulas double`.
#include <cstdio>
#include <cstring>

#include "../../csrc/common/loss.h"
#include "../../csrc/common/mass.h"
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
    printf("\n");
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  return strcmp(argv[1], "double") == 0 ? evaluate<double>() : evaluate<float>();
}
