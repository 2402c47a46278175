// SPDX-License-Identifier: Apache-2.0
// What computed a call, as the code that ran tells it.
#pragma once

namespace softkern {

struct Ran {
  const char* isa;   // the instruction set that the code was compiled for, or the backend
  const char* path;  // the way that the rows went
};

}  // namespace softkern
