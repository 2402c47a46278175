// SPDX-License-Identifier: Apache-2.0
#include "ran.h"

namespace softkern {
namespace {

thread_local Ran ran_last = {"", ""};

}  // namespace

const Ran& last_ran() { return ran_last; }

void set_last_ran(const Ran& ran) { ran_last = ran; }

}  // namespace softkern
