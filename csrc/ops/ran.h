// SPDX-License-Identifier: Apache-2.0
// What ran last in the calling thread, on whatever backend.
#pragma once

#include "../common/ran.h"

namespace softkern {

/// Empty names before the first call.
const Ran& last_ran();
void set_last_ran(const Ran& ran);

}  // namespace softkern
