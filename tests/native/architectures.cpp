// SPDX-License-Identifier: Apache-2.0
// Which devices run code of which architectures: `architectures LIST MAJOR MINOR` prints 1 or 0.
#include <cstdio>
#include <cstdlib>

#include "../../csrc/cuda/device.h"

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  printf("%d\n", softkern::cuda::runs_on(argv[1], atoi(argv[2]), atoi(argv[3])));
}
