// SPDX-License-Identifier: Apache-2.0
// What is known of launches of clusters, one question at a time and by many threads. Prints what is wrong.
#include <atomic>
#include <cstdio>
#include <thread>
#include <vector>

#include "../../csrc/cuda/clusters.h"

using softkern::cuda::ClusterLaunch;
using softkern::cuda::KnownClusters;
using softkern::cuda::kUnknown;

namespace {

int wrong = 0;

void check(bool holds, const char* what) {
  if (holds) return;
  printf("not so: %s\n", what);
  ++wrong;
}

}  // namespace

int main() {
  char here[2];
  // Each differs from the first in one thing.
  const std::vector<ClusterLaunch> launches = {
      {0, &here[0], &here[0], 2, 512, 64}, {1, &here[0], &here[0], 2, 512, 64},
      {0, &here[1], &here[0], 2, 512, 64}, {0, &here[0], &here[1], 2, 512, 64},
      {0, &here[0], &here[0], 4, 512, 64}, {0, &here[0], &here[0], 2, 544, 64},
      {0, &here[0], &here[0], 2, 512, 128}};
  KnownClusters known;
  int asked = 0;
  for (int round = 0; round < 2; ++round) {
    for (size_t i = 0; i < launches.size(); ++i) {
      const int at_a_time = i == 0 ? 0 : 66;
      check(known.at_a_time(launches[i], [&] { return ++asked, at_a_time; }) == at_a_time,
            "each has its own answer");
    }
    check(asked == 7, "asked once");
  }

  KnownClusters fresh;
  check(fresh.at_a_time(launches[0], [] { return kUnknown; }) == kUnknown, "what is unknown is said to be");
  check(fresh.at_a_time(launches[0], [] { return 0; }) == 0, "and asked about again");

  // More than are kept, written and read at the same time.
  KnownClusters shared;
  std::atomic<int> others{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&] {
      ClusterLaunch launch = launches[0];
      for (launch.device = 0; launch.device < 10000; ++launch.device) {
        const int at_a_time = launch.device % 3;
        others += shared.at_a_time(launch, [&] { return at_a_time; }) != at_a_time;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  check(others == 0, "every thread has the answer to its own question");
  return wrong > 0;
}
