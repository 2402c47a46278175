// SPDX-License-Identifier: Apache-2.0
// Hashes of the sweep's results, and those of sweep.hashes.
#pragma once

#include <cstdio>
#include <iterator>
#include <tuple>

#include "sweep_memory.h"

namespace {

/// All results of an op that went one way, of rows of up to `classes` classes and of more than the next lower
/// number in kUpTo; or those of the sample.
struct Hash {
  int64_t classes;
  std::string op, way;
  uint64_t value;
};
using Hashes = std::vector<Hash>;

constexpr int64_t kUpTo[] = {47, 127, 5000};
constexpr int64_t kSample = 0;

/// Every so many cases, for CPUs that are emulated: of all ways but chunks.
bool in_sample(const Case& c, uint64_t number) { return c.classes <= 1000 && number % 13 == 0; }

int64_t group_of(int64_t classes) { return *std::lower_bound(std::begin(kUpTo), std::end(kUpTo), classes); }
const Hashes kept = {
#include "sweep.hashes"
};

void add(Hashes& hashes, int64_t group, const Results& results) {
  for (const Result& result : results) {
    const auto is_its = [&](const Hash& h) {
      return h.classes == group && h.op == result.op && h.way == result.way;
    };
    auto hash = std::find_if(hashes.begin(), hashes.end(), is_its);
    if (hash == hashes.end()) hash = hashes.insert(hashes.end(), {group, result.op, result.way, 0});
    for (size_t i = 0; i < result.bytes.size(); i += kSize[result.type]) {
      hash->value = mixed(hash->value + 1 + bits_of(&result.bytes[i], result.type));
    }
  }
}

/// Whether all of a's are among b's, of the groups whose cases have all been computed.
template <class Complete>
bool same(const Hashes& a, const Hashes& b, Complete is_complete, const char* isa) {
  bool equal = true;
  for (const Hash& hash : a) {
    if (!is_complete(hash.classes)) continue;
    const bool found = std::any_of(b.begin(), b.end(), [&](const Hash& other) {
      return other.classes == hash.classes && other.op == hash.op && other.way == hash.way &&
             other.value == hash.value;
    });
    if (!found) {
      const std::string of =
          hash.classes == kSample ? "the sample" : "up to " + std::to_string(hash.classes) + " classes";
      printf("%s differs from sweep.hashes: %s by way of %s, %s\n", isa, hash.op.c_str(), hash.way.c_str(),
             of.c_str());
      equal = false;
    }
  }
  return equal;
}

void print(Hashes hashes) {
  std::sort(hashes.begin(), hashes.end(), [](const Hash& a, const Hash& b) {
    return std::tie(a.classes, a.op, a.way) < std::tie(b.classes, b.op, b.way);
  });
  for (const Hash& hash : hashes) {
    printf("{%ld, \"%s\", \"%s\", 0x%016llx},\n", static_cast<long>(hash.classes), hash.op.c_str(),
           hash.way.c_str(), static_cast<unsigned long long>(hash.value));
  }
}

}  // namespace
