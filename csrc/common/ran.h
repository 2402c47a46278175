// SPDX-License-Identifier: Apache-2.0
// The names of the code that computed a call, as reported by that code.
#pragma once

namespace softkern {

struct Ran {
  const char* isa;   // the instruction set that the code was compiled for, or the backend
  const char* path;  // the way of the rows
};

}  // namespace softkern
