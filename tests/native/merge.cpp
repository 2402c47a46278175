// SPDX-License-Identifier: Apache-2.0
// The merge of statistics of a row's parts (cpu/rows/stats.h) against long double: random rows in
// random parts, some of them empty, merged one by one and as a balanced tree. Prints the largest errors in
// units in the last place; exit code 1 where one is above its bound, or where a rule of the merge's contract
// does not hold.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#define SOFTKERN_ISA "portable"
#include "../../csrc/cpu/simd/portable.h"
#include "../../csrc/cpu/rows/stats.h"

using namespace softkern;
using namespace softkern::cpu;

namespace {

uint64_t state = 1;
double uniform() {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<double>(state >> 11) * 0x1p-53;
}
double normal() {
  double sum = -6;
  for (int i = 0; i < 12; ++i) sum += uniform();
  return sum;
}

int wrong = 0;
void check(bool holds, const char* what) {
  if (holds) return;
  printf("not so: %s\n", what);
  ++wrong;
}

template <class A>
RowStats<A> empty() {
  return make_stats<A>(-INFINITY, 0, 0);
}

template <class A>
RowStats<A> stats_of(const A* x, int64_t n) {
  if (n == 0) return empty<A>();
  RowRange<A> range = row_range<A>(x, n);
  return row_stats<A>(x, static_cast<A*>(nullptr), n, static_cast<const A*>(nullptr),
                      static_cast<const A*>(nullptr), range);
}

template <class A>
RowStats<A> one_by_one(const std::vector<RowStats<A>>& parts) {
  RowStats<A> all = empty<A>();
  for (const RowStats<A>& part : parts) all = merge(all, part);
  return all;
}

template <class A>
RowStats<A> as_tree(std::vector<RowStats<A>> parts) {
  while (parts.size() > 1) {
    std::vector<RowStats<A>> merged;
    for (size_t i = 0; i + 1 < parts.size(); i += 2) merged.push_back(merge(parts[i], parts[i + 1]));
    if (parts.size() % 2 == 1) merged.push_back(parts.back());
    parts = merged;
  }
  return parts[0];
}

template <class A>
bool same_bits(const RowStats<A>& a, const RowStats<A>& b) {
  return memcmp(&a, &b, sizeof(a)) == 0;
}

struct Errors {
  double d = 0, log_d = 0;
};

/// Of the type's digits, for results above the smallest normal number.
template <class A>
double in_ulp(long double got, long double want) {
  constexpr int kDigits = sizeof(A) == 4 ? 24 : 53;
  int exponent;
  std::frexp(want, &exponent);
  return static_cast<double>(std::fabs(got - want) / std::ldexp(1.0L, exponent - kDigits));
}

template <class A>
void compare(const RowStats<A>& s, long double less_one, Errors& worst) {
  const long double d = s.ties + static_cast<long double>(s.rest) / s.top;
  worst.d = std::fmax(worst.d, in_ulp<A>(d, 1 + less_one));
  const long double log_d = std::log1p(less_one);
  if (log_d > std::ldexp(1.0L, sizeof(A) == 4 ? -125 : -700))
    worst.log_d = std::fmax(worst.log_d, in_ulp<A>(s.log_d(), log_d));
}

// What the contract of merge() promises, and what rows in one part have.
constexpr Errors kOnePart{2.5, 4.5}, kTree{2.5, 4.5}, kChain{6, 8};

bool within(const Errors& found, const Errors& bound) {
  return found.d <= bound.d && found.log_d <= bound.log_d;
}

template <class A>
void measure(const char* type, double offset, double spread, int most_parts) {
  Errors whole, chain, tree;
  for (int trial = 0; trial < 150; ++trial) {
    const int count = 2 + static_cast<int>(uniform() * (most_parts - 1));
    const int64_t n = count + static_cast<int64_t>(uniform() * 40 * count);
    std::vector<A> x(n);
    for (A& v : x) {
      v = static_cast<A>(offset + spread * normal());
      if (trial % 4 == 1 && uniform() < 0.3) v = -INFINITY;
    }
    if (trial % 3 == 0) x[n / 2] = static_cast<A>(offset + spread * 6 + 20);  // confident
    long double m = -INFINITY, sum = 0;
    for (const A v : x) m = std::fmax(m, static_cast<long double>(v));
    int64_t ties = 0;
    for (const A v : x) ties += v == m;
    for (const A v : x) {
      if (v != m) sum += std::exp(static_cast<long double>(v) - m);
    }
    const long double less_one = static_cast<long double>(ties - 1) + sum;
    std::vector<RowStats<A>> parts;
    int64_t begin = 0;
    for (int p = 0; p < count; ++p) {
      int64_t end =
          p + 1 == count ? n : begin + static_cast<int64_t>(uniform() * 2 * (n - begin) / (count - p));
      if (trial % 5 == 2 && p % 4 == 1 && p + 1 < count) end = begin;  // empty
      parts.push_back(stats_of(x.data() + begin, end - begin));
      begin = end;
    }
    compare(stats_of(x.data(), n), less_one, whole);
    compare(one_by_one(parts), less_one, chain);
    compare(as_tree(parts), less_one, tree);
    check(same_bits(merge(parts[0], parts[1]), merge(parts[1], parts[0])),
          "the order of two parts has no say");
    check(same_bits(merge(parts[0], empty<A>()), parts[0]) || std::isnan(parts[0].top),
          "an empty part changes nothing");
  }
  const bool good =
      within(whole, kOnePart) && within(tree, kTree) && within(chain, most_parts == 2 ? kTree : kChain);
  printf("%-6s %7g +- %-2g %2d parts: whole d %.2f log d %.2f, tree %.2f %.2f, one by one %.2f %.2f ulp%s\n",
         type, offset, spread, most_parts, whole.d, whole.log_d, tree.d, tree.log_d, chain.d, chain.log_d,
         good ? "" : "  <-- above its bound");
  wrong += !good;
}

template <class A>
void rules() {
  const A inf = INFINITY;
  const A numbers[] = {1, 2, 3}, nan[] = {1, static_cast<A>(NAN), 0}, high[] = {inf, 0, 1},
          low[] = {-inf, -inf};
  const RowStats<A> some = stats_of(numbers, 3);
  check(std::isnan(merge(some, stats_of(nan, 3)).others()), "a NaN makes the row NaN");
  check(std::isnan(merge(stats_of(nan, 3), some).others()), "a NaN makes the row NaN, in the first part too");
  check(std::isnan(merge(some, stats_of(high, 3)).others()), "an infinite logit makes the row NaN");
  check(same_bits(merge(some, stats_of(low, 2)), some), "masked classes change nothing");
  check(std::isnan(merge(stats_of(low, 2), stats_of(low, 2)).others()), "a row of masked classes is NaN");
  check(merge(empty<A>(), empty<A>()).ties == 0, "empty parts together are empty");
  const RowStats<A> twice = merge(some, some);
  check(twice.ties == 2 && twice.rest == 2 * some.rest, "equal maxima are counted");
}

}  // namespace

int main() {
  for (const int most_parts : {2, 64}) {
    for (const double offset : {0.0, 1024.0, 1e4, 1e6}) {
      for (const double spread : {1.0, 12.0}) {
        measure<float>("float", offset, spread, most_parts);
        measure<double>("double", offset, spread, most_parts);
      }
    }
  }
  rules<float>();
  rules<double>();
  return wrong > 0;
}
